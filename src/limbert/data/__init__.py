"""From files and Hub data sets to examples, batches of tokens, and metrics."""
