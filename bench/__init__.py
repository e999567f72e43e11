"""Benchmarks of server, client and training: `make bench` and its kin."""
