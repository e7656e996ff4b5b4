"""Resource names, and which keys may be signed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper.errors import InvalidArgumentError
from hyper_storage import convert
from hyper_storage.access import Readable, Writable
from hyper_storage.resources import (
    parse_array,
    parse_dataset,
    parse_parent,
    parse_session,
    parse_task,
    parse_version,
)
from hyper_storage.sessions import ttl_of

DATASET = "tenants/t/datasets/d"
ME, OTHER = "a" * 32, "b" * 32


@pytest.mark.parametrize(
    "name",
    [
        f"{DATASET}/versions/7",
        f"{DATASET}/versions/head",
        f"{DATASET}/sessions/{ME}",
    ],
)
def test_names_round_trip(name: str) -> None:
    assert str(parse_parent(name)) == name
    assert str(parse_array(f"{name}/arrays/group/a")) == f"{name}/arrays/group/a"


def test_dash_is_the_head() -> None:
    assert parse_version(f"{DATASET}/versions/-").number is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "tenants/t",
        "tenants/t/datasets/..",
        "tenants/../datasets/d",
        f"{DATASET}/versions/0",
        f"{DATASET}/versions/-1",
        f"{DATASET}/versions/.x",
        f"{DATASET}/versions/{'9' * 40}",
        f"{DATASET}/versions/٣",
        f"{DATASET}/sessions/../x",
        f"{DATASET}/models/1",
        f"{DATASET}/versions/1/arrays/a",
    ],
)
def test_bad_parents(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        parse_parent(name)
    assert error.value.reason == "INVALID_NAME"


def test_kinds_are_told_apart() -> None:
    with pytest.raises(InvalidArgumentError):
        parse_session(f"{DATASET}/versions/1")
    with pytest.raises(InvalidArgumentError):
        parse_version(f"{DATASET}/sessions/{ME}")
    with pytest.raises(InvalidArgumentError):
        parse_dataset(f"{DATASET}/versions/1")
    with pytest.raises(InvalidArgumentError):
        parse_task("tenants/t/workflows/w/experiments/e/tasks/../x")


@given(st.text(max_size=60))
def test_no_text_is_a_traversal(text: str) -> None:
    try:
        parsed = parse_array(f"{DATASET}/versions/1/arrays/{text}")
    except InvalidArgumentError:
        return
    assert ".." not in parsed.array and not parsed.array.startswith("/")


READABLE = Readable({ME}, {f"arrays/{ME}/v1"})
WRITABLE = Writable(ME, {f"arrays/{ME}/v1": (2, 3)})


@pytest.mark.parametrize(
    "key", [f"blobs/{ME}/x", f"arrays/{ME}/v1/zarr.json", f"arrays/{ME}/v1/c/9/0/100"]
)
def test_readable(key: str) -> None:
    READABLE.check(key)


@pytest.mark.parametrize(
    "key",
    [
        f"blobs/{OTHER}/x",
        f"blobs/{ME}/../{OTHER}",
        f"blobs/{ME}/",
        f"blobs/{ME}/x\n",
        f"arrays/{OTHER}/v1/c/0",
        f"arrays/{ME}/v2/c/0",
        f"arrays/{ME}/v1/c",
        f"arrays/{ME}/v1/c/../zarr.json",
        f"manifests/{ME}",
        f"sessions/{ME}/fragments/x",
        "logs/x",
        "",
        "/",
    ],
)
def test_not_readable(key: str) -> None:
    with pytest.raises(InvalidArgumentError):
        READABLE.check(key)


def test_writable() -> None:
    WRITABLE.check(f"blobs/{ME}/x")
    WRITABLE.check(f"arrays/{ME}/v1/c/1/2")
    for key in (
        f"blobs/{OTHER}/x",
        f"arrays/{ME}/v1/zarr.json",
        f"arrays/{ME}/v1/c/2/0",
        f"arrays/{ME}/v1/c/0/3",
        f"arrays/{ME}/v1/c/0",
        f"arrays/{ME}/v1/c/0/0/0",
        f"arrays/{ME}/v1/c/01/0",
        f"arrays/{OTHER}/v1/c/0/0",
    ):
        with pytest.raises(InvalidArgumentError):
            WRITABLE.check(key)


@given(st.text(max_size=50))
def test_tokens_round_trip(text: str) -> None:
    assert convert.token_text(convert.token_of(text)) == text


@pytest.mark.parametrize("token", ["%%%", "x", "é", "AAA", "/w=="])
def test_bad_tokens(token: str) -> None:
    with pytest.raises(InvalidArgumentError):
        convert.token_text(token)


def test_numbers_in_tokens() -> None:
    assert convert.token_number("") == 0
    assert convert.token_number(convert.token_of("17")) == 17
    with pytest.raises(InvalidArgumentError):
        convert.token_number(convert.token_of("-1"))


def test_small_checks() -> None:
    assert ttl_of(0, 60, 100) == 60
    for bad in (-1, 0.5, 101, float("nan")):
        with pytest.raises(InvalidArgumentError):
            ttl_of(bad, 60, 100)
    assert convert.page_size_of(0, 5, 10) == 5
    assert convert.page_size_of(99, 5, 10) == 10
    with pytest.raises(InvalidArgumentError):
        convert.page_size_of(-1, 5, 10)
    for request_id in ("a b", "x" * 65, "../x"):
        with pytest.raises(InvalidArgumentError):
            convert.request_of("t", request_id, "call")
    with pytest.raises(InvalidArgumentError):
        convert.method_of(0)
    with pytest.raises(InvalidArgumentError):
        convert.prefix_of("../x")
    assert convert.prefix_of("a/") == "a/"
    with pytest.raises(InvalidArgumentError):
        convert.message_of("x" * 5000)
