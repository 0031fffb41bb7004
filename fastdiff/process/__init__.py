"""The diffusion process itself: schedules, predictions, grids of times, noise."""
