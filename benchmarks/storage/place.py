"""A cluster to measure on, with the key to its bucket for the peers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scheduler.cluster import Cluster, cluster
from benchmarks.storage.rounds import Peers
from hyper.client import Client
from hyper.datasets import Dataset


@dataclass(frozen=True, slots=True)
class Place:
    """Where rows are measured.

    Args:
        cluster: its processes.
        client: of this process.
        peers: the process of the peers.
        scratch: a folder for local files.
        quick: smaller inputs, fewer rounds.
    """

    cluster: Cluster
    client: Client
    peers: Peers
    scratch: Path
    quick: bool

    @property
    def rounds(self) -> int:
        return 2 if self.quick else 5

    def name(self) -> str:
        """A dataset that nobody uses."""
        return f"bench/set-{secrets.token_hex(6)}"

    def dataset(self, name: str) -> Dataset:
        return self.client.open_dataset(name)


@contextmanager
def place(scratch: Path, *, quick: bool) -> Iterator[Place]:
    """`hyper up`, a client, and the peers' process; gone at the end."""
    with cluster(1, 1) as where:
        peers = Peers(where.s3())
        with Client(where.endpoint) as client:
            try:
                yield Place(where, client, peers, scratch, quick)
            finally:
                peers.close()
