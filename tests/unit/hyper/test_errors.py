"""Errors without a wire: classes, codes, exit statuses."""

from __future__ import annotations

import re

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

import hyper.errors
from hyper._wire_errors import to_status
from hyper.errors import (
    CLASS_OF_REASON,
    HyperError,
    InvalidArgumentError,
    NoClusterError,
    ResourceExhaustedError,
    WorkFailedError,
)

CLASSES = [
    kind
    for kind in vars(hyper.errors).values()
    if isinstance(kind, type) and issubclass(kind, HyperError) and kind is not HyperError
]


def test_the_docstring_is_the_table() -> None:
    rows = re.findall(r"^([A-Z_]+) +(\w+Error) +(\d)$", hyper.errors.__doc__ or "", re.MULTILINE)
    told = {(code, name, int(status)) for code, name, status in rows}
    real = {
        (kind.code, kind.__name__, kind.exit_code)
        for kind in CLASSES
        if kind not in (NoClusterError, WorkFailedError)
    }
    assert told == real


def test_default_reasons_exist() -> None:
    assert {kind.default_reason for kind in CLASSES} <= set(CLASS_OF_REASON)


def test_details_of_a_status() -> None:
    error = ResourceExhaustedError("the queue is full", retry_after_s=0.25, metadata={"a": "b"})
    status = to_status(error)
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == ("QUEUE_FULL", "hyper", {"a": "b"})
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 0.25


def test_a_reason_outside_the_enum_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="REASON_NOPE"):
        to_status(InvalidArgumentError("no", reason="NOPE"))


@given(st.text(min_size=200, max_size=4000), st.text(max_size=400))
def test_a_status_is_bounded_valid_and_keeps_both_ends(text: str, value: str) -> None:
    status = to_status(InvalidArgumentError(f"<{text}>", metadata={"k": value}, field=value))
    assert len(status.SerializeToString()) < 2500
    assert (status.message[0], status.message[-1]) == ("<", ">")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_short_texts_are_sent_as_they_are(text: str) -> None:
    assert to_status(InvalidArgumentError(text)).message == text
