"""Photo to labels: the server."""
