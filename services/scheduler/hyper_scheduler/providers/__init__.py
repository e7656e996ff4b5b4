"""Who starts machines: one small interface, one module a kind of place."""
