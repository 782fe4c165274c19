"""Evaluation of sub-networks and policies: metrics, measured costs, search, and choice within a budget."""
