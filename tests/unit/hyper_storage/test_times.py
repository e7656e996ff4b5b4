"""Times that callers name."""

from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from hyper.errors import InvalidArgumentError
from hyper_storage.convert import ns_of


def test_a_time_is_kept() -> None:
    assert ns_of(Timestamp(seconds=-3, nanos=5), "t") == -2_999_999_995


@pytest.mark.parametrize("seconds", [1 << 60, 253_402_300_799, -62_135_596_800])
def test_times_beyond_64_bits_are_refused(seconds: int) -> None:
    with pytest.raises(InvalidArgumentError, match="since"):
        ns_of(Timestamp(seconds=seconds), "since")
