"""Exporting a sub-network to files for other programs, verified in their own runtime."""
