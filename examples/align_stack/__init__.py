"""Align a real stack of unaligned electron-microscope sections on a local cluster."""
