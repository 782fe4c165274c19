"""Training: the trainer, its phases, and the recipes that run them."""
