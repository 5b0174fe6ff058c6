"""Models from and for the Hugging Face hub, and the authors' own checkpoints."""
