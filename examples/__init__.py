"""Examples: one folder a workload, each one command."""
