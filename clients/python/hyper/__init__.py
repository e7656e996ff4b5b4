"""Hyper: the Python SDK."""
