"""`hyper mount`: a version as a folder, and a folder whose changes become versions.

`blocks.py` caches the bytes of objects in memory and on disk; `names.py` is the tree of names;
`reading.py` and `writing.py` are the file systems of a version and of a session; `fuse.py` and
`libfuse.py` join them to the kernel; `process.py` is the life of a mount.
"""
