"""The elastic encoder: a stock Transformers model that runs at any of its sub-networks."""
