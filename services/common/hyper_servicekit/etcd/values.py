"""What goes into etcd and what comes out: plain values, and their protobuf forms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from aetcd import rpc

MAX_OPERATIONS = 128  # etcd's --max-txn-ops: a transaction with more is refused


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as etcd holds it; `lease` is 0 where the key has none."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything under a watched prefix at one revision; what was known before is void."""

    items: tuple[KeyValue, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """One key put (`value` set) or deleted (`value` None) at `revision`."""

    key: str
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction; make one with the class methods."""

    key: str
    target: str
    operator: str
    operand: int | bytes

    @classmethod
    def exists(cls, key: str) -> Compare:
        """`key` is there."""
        return cls(key, "create", "GREATER", 0)

    @classmethod
    def missing(cls, key: str) -> Compare:
        """`key` is not there."""
        return cls(key, "create", "EQUAL", 0)

    @classmethod
    def create_revision(cls, key: str, revision: int) -> Compare:
        """`key` is the one that was created at `revision` (0: it is not there)."""
        return cls(key, "create", "EQUAL", revision)

    @classmethod
    def mod_revision(cls, key: str, revision: int) -> Compare:
        """`key` was last changed at `revision` (0: it is not there)."""
        return cls(key, "mod", "EQUAL", revision)

    @classmethod
    def value(cls, key: str, value: bytes) -> Compare:
        """`key` holds exactly `value`."""
        return cls(key, "value", "EQUAL", value)

    def to_rpc(self) -> Any:
        """The protobuf form."""
        message = rpc.Compare(
            key=self.key.encode(), result=rpc.Compare.CompareResult.Value(self.operator)
        )
        match self.operand:
            case bytes():
                message.target, message.value = rpc.Compare.VALUE, self.operand
            case int() if self.target == "create":
                message.target, message.create_revision = rpc.Compare.CREATE, self.operand
            case _:
                message.target, message.mod_revision = rpc.Compare.MOD, self.operand
        return message


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of a transaction; make one with the class methods."""

    kind: str
    key: str
    data: bytes = b""
    lease: int = 0
    end: bytes = b""

    @classmethod
    def put(cls, key: str, value: bytes, lease: int = 0) -> Op:
        """Set `key`; with a lease it goes when the lease does."""
        return cls("put", key, value, lease)

    @classmethod
    def delete(cls, key: str) -> Op:
        """Remove `key` if it is there."""
        return cls("delete", key)

    @classmethod
    def delete_prefix(cls, prefix: str) -> Op:
        """Remove every key that starts with `prefix`."""
        return cls("delete", prefix, end=prefix_end(prefix))

    @classmethod
    def get(cls, key: str) -> Op:
        """Read `key`."""
        return cls("get", key)

    def to_rpc(self) -> Any:
        """The protobuf form."""
        key = self.key.encode()
        if self.kind == "put":
            put = rpc.PutRequest(key=key, value=self.data, lease=self.lease)
            return rpc.RequestOp(request_put=put)
        if self.kind == "delete":
            delete = rpc.DeleteRangeRequest(key=key, range_end=self.end)
            return rpc.RequestOp(request_delete_range=delete)
        return rpc.RequestOp(request_range=rpc.RangeRequest(key=key))


@dataclass(frozen=True, slots=True)
class TxnResult:
    """What a transaction did.

    `responses` answer the operations of the branch that ran, in order: a get with its `KeyValue`
    or None, a delete with the number of keys removed, a put with None.
    """

    succeeded: bool
    revision: int
    responses: tuple[KeyValue | int | None, ...]


def prefix_end(prefix: str) -> bytes:
    """The end of the range of keys that start with `prefix` (not empty)."""
    end = bytearray(prefix.encode())
    while end and end[-1] == 0xFF:
        end.pop()
    if not end:
        raise ValueError("a prefix must not be empty")
    end[-1] += 1
    return bytes(end)


def key_value(message: Any) -> KeyValue:
    """A protobuf key-value as ours."""
    return KeyValue(
        message.key.decode(),
        message.value,
        message.create_revision,
        message.mod_revision,
        message.version,
        message.lease,
    )


def txn_result(message: Any) -> TxnResult:
    """A protobuf transaction's answer as ours."""
    responses: list[KeyValue | int | None] = []
    for part in message.responses:
        match part.WhichOneof("response"):
            case "response_range":
                found = part.response_range.kvs
                responses.append(key_value(found[0]) if found else None)
            case "response_delete_range":
                responses.append(part.response_delete_range.deleted)
            case _:
                responses.append(None)
    return TxnResult(message.succeeded, message.header.revision, tuple(responses))


def batches(operations: Iterable[Op], limit: int = 100) -> Iterator[list[Op]]:
    """Cut `operations` into lists of at most `limit`, so that each fits a transaction."""
    if not 0 < limit <= MAX_OPERATIONS:
        raise ValueError(f"limit must be from 1 to {MAX_OPERATIONS}")
    rest = iter(operations)
    while batch := list(islice(rest, limit)):
        yield batch
