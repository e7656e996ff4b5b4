"""Compares, operations, batches: their protobuf forms."""

from __future__ import annotations

import pytest
from aetcd import rpc
from hypothesis import given
from hypothesis import strategies as st

from hyper_servicekit.etcd import Compare, Etcd, Op, batches
from hyper_servicekit.etcd.values import prefix_end

KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(KEYS, st.binary(max_size=8))
def test_a_prefix_s_range_holds_its_keys_alone(prefix: str, more: bytes) -> None:
    start, end = prefix.encode(), prefix_end(prefix)
    assert start <= start + more < end
    assert end[:-1] == start[: len(end) - 1]


def test_there_is_no_empty_prefix() -> None:
    with pytest.raises(ValueError, match="empty"):
        prefix_end("")


@given(st.integers(0, 400), st.integers(1, 128))
def test_batches_keep_order_and_limit(count: int, limit: int) -> None:
    operations = [Op.delete(str(i)) for i in range(count)]
    cut = list(batches(operations, limit))
    assert [operation for batch in cut for operation in batch] == operations
    assert all(0 < len(batch) <= limit for batch in cut)
    assert len(cut) == -(-count // limit)


@pytest.mark.parametrize("limit", [0, -1, 129])
def test_batches_larger_than_a_transaction(limit: int) -> None:
    with pytest.raises(ValueError, match="limit"):
        list(batches([], limit))


def test_compares() -> None:
    equal, greater = rpc.Compare.EQUAL, rpc.Compare.GREATER
    expected = {
        Compare.exists("k"): rpc.Compare(
            key=b"k", target=rpc.Compare.CREATE, result=greater, create_revision=0
        ),
        Compare.missing("k"): rpc.Compare(
            key=b"k", target=rpc.Compare.CREATE, result=equal, create_revision=0
        ),
        Compare.create_revision("k", 7): rpc.Compare(
            key=b"k", target=rpc.Compare.CREATE, result=equal, create_revision=7
        ),
        Compare.mod_revision("k", 7): rpc.Compare(
            key=b"k", target=rpc.Compare.MOD, result=equal, mod_revision=7
        ),
        Compare.value("k", b"v"): rpc.Compare(
            key=b"k", target=rpc.Compare.VALUE, result=equal, value=b"v"
        ),
    }
    for compare, message in expected.items():
        assert compare.to_rpc() == message


def test_operations() -> None:
    assert Op.put("k", b"v", 3).to_rpc().request_put == rpc.PutRequest(
        key=b"k", value=b"v", lease=3
    )
    assert Op.get("k").to_rpc().request_range == rpc.RangeRequest(key=b"k")
    assert Op.delete("k").to_rpc().request_delete_range == rpc.DeleteRangeRequest(key=b"k")
    assert Op.delete_prefix("k").to_rpc().request_delete_range == rpc.DeleteRangeRequest(
        key=b"k", range_end=b"l"
    )


@pytest.mark.parametrize("endpoints", [[], ["nowhere"], ["a:b"], ["a:70000"]])
def test_endpoints_are_checked(endpoints: list[str]) -> None:
    with pytest.raises(ValueError, match=r"endpoint|host:port"):
        Etcd(endpoints)
