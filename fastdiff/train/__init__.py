"""Training: the loop, the losses, your own networks and data (`fit`), and the bundled models (emoji)."""
