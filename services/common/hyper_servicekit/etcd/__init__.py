"""etcd for services: reads, fenced transactions, list-then-watch, leases, elections.

Built on the protobuf stubs of `aetcd` over a gRPC channel of our own.
"""

from hyper_servicekit.etcd.client import Etcd
from hyper_servicekit.etcd.election import Election, Leadership
from hyper_servicekit.etcd.errors import LeaseLostError
from hyper_servicekit.etcd.lease import Lease
from hyper_servicekit.etcd.values import (
    MAX_OPERATIONS,
    Change,
    Compare,
    KeyValue,
    Op,
    Snapshot,
    TxnResult,
    batches,
)

__all__ = [
    "MAX_OPERATIONS",
    "Change",
    "Compare",
    "Election",
    "Etcd",
    "KeyValue",
    "Leadership",
    "Lease",
    "LeaseLostError",
    "Op",
    "Snapshot",
    "TxnResult",
    "batches",
]
