"""Metrics of predictions, parts and masks, computed from what a model returned."""
