"""Inference: this engine and its peers on the same nets, in turn."""
