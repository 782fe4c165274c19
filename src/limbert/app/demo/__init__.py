"""The demo's data files; their README names source and licence."""
