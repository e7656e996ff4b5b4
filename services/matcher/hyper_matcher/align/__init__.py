"""Alignment of a stack of sections: pure functions on arrays."""
