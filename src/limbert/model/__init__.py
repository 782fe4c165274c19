"""Layer 2, the elastic encoder: a stock Transformers model that also runs narrower and shallower."""
