"""Layer 5, people: the command and what it shows."""
