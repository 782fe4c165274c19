"""HTTP protocols, one router per file."""
