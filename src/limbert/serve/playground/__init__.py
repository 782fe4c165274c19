"""The web page at ``/playground``: try texts at any variant, compare variants, watch the server."""
