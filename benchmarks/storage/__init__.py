"""Benchmarks of the storage gateway and of what the client does with it."""
