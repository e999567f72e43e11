"""Benchmarks of the server: `make bench` and `make soak`."""
