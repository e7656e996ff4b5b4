"""No name leaves its place."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper.errors import InvalidArgumentError
from hyper.names import Address, check_part, check_path, parse_address

PARTS = st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,20}[A-Za-z0-9_-])?", fullmatch=True).filter(
    lambda text: ".." not in text
)


@given(st.text())
def test_an_accepted_path_stays_inside(text: str) -> None:
    try:
        check_path(text)
    except InvalidArgumentError as error:
        assert error.reason == "INVALID_NAME"
        assert error.field == "path"
        return
    assert posixpath.normpath(f"/root/{text}") == f"/root/{text}"
    assert text.isprintable()


@given(st.text())
def test_an_accepted_part_is_one_part(text: str) -> None:
    try:
        check_part(text, "tenant")
    except InvalidArgumentError as error:
        assert error.field == "tenant"
        return
    assert text.isascii()
    assert not set("/\\@\n ") & set(text)
    assert text not in (".", "..")


@given(PARTS, PARTS, st.none() | st.integers(1, 2**63 - 1), st.none() | st.lists(PARTS, min_size=1))
def test_addresses_round_trip(
    tenant: str, dataset: str, version: int | None, array: list[str] | None
) -> None:
    address = Address(tenant, dataset, version, "/".join(array) if array else None)
    assert parse_address(str(address)) == address
    assert parse_address(f"hyper://{address}") == address
    assert address.dataset_name == f"tenants/{tenant}/datasets/{dataset}"


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "a/", "/a", "a/b/", "a//b", "a/../b", "../a/b", "a/b@", "a/b@0", "a/b@-1",
        "a/b@.x", "a/b@1.5", "a/b@9223372036854775808", "a/b@" + "9" * 5000, "a/b@1@2", "a b/c",
        "a/b\n", "a/" + "b" * 129, ".a/b", "a/b/..", "a/b/x y", "a/٣", "a/b@٣٣٣٣x",
    ],
)  # fmt: skip
def test_what_is_not_an_address(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_address(text)
    assert caught.value.reason == "INVALID_NAME"
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("path", ["a", "a/b.c/d e", "ü/ñ.png", ".hidden/..x", "x" * 1024])
def test_good_paths(path: str) -> None:
    assert check_path(path) == path
