"""What etcd holds, and its JSON: heads, version entries, sessions, answered requests.

Keys, below `{etcd_prefix}/storage/`:

    heads/{tenant}/{dataset}              Head
    versions/{dataset id}/{number:016x}   VersionEntry
    tags/{dataset id}/{tag}               TagRecord
    sessions/{session id}                 SessionRecord
    fragments/{session id}                the newest fragment's name, under a lease
    shards/{session id}/{shard}           who is changing a part of it, under a lease
    usage/{tenant}                        Usage, of a tenant with a quota
    stores/{tenant}/{store}               StoreRecord (see `external.py`)
    gc/epoch  gc/lock                     garbage collection of manifests (see `garbage.py`)
    requests/{tenant}/{request id}        RequestRecord, under a lease
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class Head:
    """A dataset: its identity (a name may be deleted and made again) and newest version."""

    id: str
    number: int
    root: str
    created_ns: int
    updated_ns: int

    def encode(self) -> bytes:
        """The value in etcd."""
        return _dump(asdict(self))


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """One committed version."""

    number: int
    root: str
    message: str
    created_ns: int
    files: int
    file_bytes: int
    arrays: tuple[str, ...]

    def encode(self) -> bytes:
        """The value in etcd."""
        return _dump(asdict(self))


@dataclass(frozen=True, slots=True)
class TagRecord:
    """A name for a version."""

    number: int
    updated_ns: int

    def encode(self) -> bytes:
        """The value in etcd."""
        return _dump(asdict(self))


class Made(NamedTuple):
    """An array that a session writes.

    Args:
        id: its place in the bucket.
        record: hash of its `zarr.json`.
        edits: it lies over the array of the same name in the session's base.
        overlay: hash of where its shards lie, of a registered one.
    """

    id: str
    record: str
    edits: bool = False
    overlay: str = ""


class SessionState(StrEnum):
    """Where a session is in its life. SEALED: a commit has begun and takes no more files."""

    OPEN = "open"
    SEALED = "sealed"
    COMMITTED = "committed"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session.

    Args:
        id: 32 hex digits; also its place in the bucket.
        tenant: whose.
        dataset: short name of its dataset.
        dataset_id: which must still be the dataset's id at commit.
        base: version that it started from.
        base_root: hash of that version's root; "" for none.
        state: see `SessionState`.
        ttl_s: how long it may lie unused.
        created_ns: Unix time.
        expires_ns: Unix time; moved on by use, coarsely.
        committed: its version, once it is committed.
        commit_request: the request that committed it.
        arrays: what it changes, by name; None for deleted.
    """

    id: str
    tenant: str
    dataset: str
    dataset_id: str
    base: int
    base_root: str
    state: SessionState
    ttl_s: int
    created_ns: int
    expires_ns: int
    committed: int = 0
    commit_request: str = ""
    arrays: Mapping[str, Made | None] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The value in etcd."""
        return _dump(asdict(self))

    def with_array(self, name: str, made: Made | None) -> SessionRecord:
        """The same session with one more change."""
        return replace(self, arrays={**self.arrays, name: made})

    def without_array(self, name: str) -> SessionRecord:
        """The same session without its change of `name`."""
        return replace(self, arrays={k: v for k, v in self.arrays.items() if k != name})


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant uses.

    Args:
        sessions: bytes reserved, by id of the session.
        datasets: bytes committed, by id of the dataset.
    """

    sessions: Mapping[str, int] = field(default_factory=dict)
    datasets: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Of both."""
        return sum(self.sessions.values()) + sum(self.datasets.values())

    def encode(self) -> bytes:
        """The value in etcd."""
        return _dump(asdict(self))


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """The answer to a request that changed something.

    Args:
        call: method and resource; a request id stands for one call only.
        answer: what to answer again; each method has its own form.
    """

    call: str
    answer: Mapping[str, Any]

    def encode(self) -> bytes:
        """The value in etcd."""
        return _dump({"call": self.call, "answer": self.answer})


def decode_head(value: bytes) -> Head:
    """A head from etcd."""
    return Head(**json.loads(value))


def decode_version(value: bytes) -> VersionEntry:
    """A version entry from etcd."""
    facts = json.loads(value)
    return VersionEntry(**{**facts, "arrays": tuple(facts["arrays"])})


def decode_tag(value: bytes) -> TagRecord:
    """A tag from etcd."""
    return TagRecord(**json.loads(value))


def decode_session(value: bytes) -> SessionRecord:
    """A session from etcd."""
    facts = json.loads(value)
    arrays = {name: None if made is None else Made(*made) for name, made in facts["arrays"].items()}
    return SessionRecord(**{**facts, "state": SessionState(facts["state"]), "arrays": arrays})


def decode_usage(value: bytes) -> Usage:
    """A tenant's usage from etcd."""
    return Usage(**json.loads(value))


def decode_request(value: bytes) -> RequestRecord:
    """An answered request from etcd."""
    facts = json.loads(value)
    return RequestRecord(facts["call"], facts["answer"])


def _dump(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, separators=(",", ":")).encode()
