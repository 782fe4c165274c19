"""Layer 3, data: from files and Hub data sets to batches of tokens, and from logits to the task's metrics."""
