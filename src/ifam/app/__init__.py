"""The app: one image at a time, what its answer rests on, and what changes as parts and patches are hidden or shown."""
