"""Object storage: immutable bytes under keys, in S3 or in memory.

Keys are relative to `S3Settings.prefix` and are safe relative paths (`hyper.names.check_path`).
No key may be a folder of another ("a" beside "a/b"): some servers keep folders.
"""

from hyper_servicekit.objects.base import ObjectInfo, ObjectStore
from hyper_servicekit.objects.memory import MemoryStore
from hyper_servicekit.objects.s3 import S3Store

__all__ = ["MemoryStore", "ObjectInfo", "ObjectStore", "S3Store"]
