"""What a model claims, checked: certificates, swapped backgrounds, leakage through the mask."""
