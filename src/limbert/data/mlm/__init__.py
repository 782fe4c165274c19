"""Masked language modelling data: corpus, packed sequences, masks."""
