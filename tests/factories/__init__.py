"""Builders that several tests share: small networks, runs on disk, servers, simulated load."""
