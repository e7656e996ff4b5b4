"""The `hyper` command."""
