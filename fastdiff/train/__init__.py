"""Training: the loop, the losses, and the bundled models (emoji)."""
