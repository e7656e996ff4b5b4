"""The scheduler and its peers: the same tasks, in turn."""
