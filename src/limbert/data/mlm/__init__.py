"""Masked language modelling: corpus, packed sequences, masks."""
