"""From a sub-network to files that other programs run: written, reloaded in their own runtime, and compared."""
