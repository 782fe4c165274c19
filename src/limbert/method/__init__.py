"""Training methods of the papers: importance, rewiring, grafting, losses, gate targets and early exit."""
