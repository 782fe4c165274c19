"""Data augmentation: training examples with words replaced (TinyBERT, algorithm 1)."""
