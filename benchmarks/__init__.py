"""Benchmarks, one folder an area: `python -m benchmarks.AREA[.NAME]`."""
