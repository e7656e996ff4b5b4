"""What tests of containers share: they are opt-in, since they need a daemon and an image."""

from __future__ import annotations

import os

import pytest

IMAGE = os.environ.get("HYPER_TEST_IMAGE", "python:3.11-slim-bookworm")
NEEDS_DOCKER = [
    pytest.mark.docker,
    pytest.mark.skipif(
        os.environ.get("HYPER_TEST_DOCKER") != "1",
        reason="containers are opt-in: HYPER_TEST_DOCKER=1 with a Docker daemon",
    ),
    # docker's client leaves closing its own sockets to the collector
    pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning"),
]
