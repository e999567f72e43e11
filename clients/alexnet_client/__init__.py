"""Client library for the AlexNet server."""
