"""What kernels need and move, for GPUs that are not there. Never imported where kernels run."""
