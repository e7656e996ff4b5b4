"""Programs that run in .venv-bench, where the peers are installed."""
