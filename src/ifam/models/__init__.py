"""The two-stage model, its parts, and the baselines."""
