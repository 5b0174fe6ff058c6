"""Losses, optimization and the training loop."""
