"""Measuring sub-networks and policies, and choosing among them."""
