"""Peers, run by the interpreter of .venv-bench."""
