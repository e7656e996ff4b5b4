"""Fixtures that every test may use, the order of files, and how hypothesis searches."""

import signal
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.servers import etcd_prefix, etcd_server, s3_server, s3_settings

__all__ = ["etcd_prefix", "etcd_server", "s3_server", "s3_settings"]

# Busy machines are slow: how long an example takes says nothing.
settings.register_profile("hyper", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hyper")

# A shell's background job ignores Ctrl-C, and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)  # after pytest-randomly
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that may take long come first, so that no process is left with them at the end."""
    longest: dict[Path, float] = defaultdict(float)
    for item in items:
        if mark := item.get_closest_marker("timeout"):
            longest[item.path] = max(longest[item.path], float(mark.args[0]))
    items.sort(key=lambda item: -longest[item.path])
