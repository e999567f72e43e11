"""Mutated input against what reads it: `make fuzz`, and a slice of it among the tests."""
