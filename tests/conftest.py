"""Fixtures that every test may use."""

from tests.support.servers import etcd_prefix, etcd_server, s3_server, s3_settings

__all__ = ["etcd_prefix", "etcd_server", "s3_server", "s3_settings"]
