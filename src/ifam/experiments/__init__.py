"""Experiments of several trainings: comparisons and the demo."""
