"""The audit of a model: certificates, background swaps, mask leakage, sufficiency, post-hoc attribution."""
