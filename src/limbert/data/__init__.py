"""From files, the Hub or a ``datasets.Dataset`` to batches and metrics.

All functions raise `ConfigError` for settings that contradict each other and for tokenizers that cannot be used, and
`DataError` for a missing or unusable file, column or row (``FILE:LINE: what, expected``), unless bad rows are skipped.
"""
