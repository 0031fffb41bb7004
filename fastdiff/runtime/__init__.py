"""What runs where: choice of implementation, devices, the compiled module, the dispatcher, memory, graphs."""
