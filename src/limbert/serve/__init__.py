"""The server: one model over HTTP, at the size that each request asks for and the load allows."""
