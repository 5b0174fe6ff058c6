"""Several trainings on one page: comparisons and the demo."""
