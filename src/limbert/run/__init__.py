"""Layer 4, what takes time: training, evaluation and measuring."""
