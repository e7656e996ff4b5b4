"""Stitching of overlapping tiles into montages: pure functions, and the tasks over them."""
