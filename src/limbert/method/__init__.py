"""Layer 3, what the papers add to training: importance, rewiring and losses."""
