"""Reference models in plain PyTorch, and the bundled weights."""
