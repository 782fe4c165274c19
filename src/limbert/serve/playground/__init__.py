"""The page at `/playground`: a text, a size, the answer and what it cost, and the server at work."""
