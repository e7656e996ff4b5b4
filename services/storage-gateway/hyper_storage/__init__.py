"""Datasets of files and arrays over an object store: the storage gateway."""
