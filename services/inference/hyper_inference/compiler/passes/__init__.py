"""Graph -> graph, one pass a file; none knows of another, `pipeline.py` orders them."""
