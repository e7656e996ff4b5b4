"""Benchmarks of the matcher."""
