"""The protocols that the server speaks, each on its own path."""
