"""Where the shards of an array lie that is not in one place (pure).

An edited array is layers of shards over a base; a registered one is a base in a store of somebody.
Each shard of an array is in one layer only, the newest that wrote it. The document is a manifest in
the bucket, under its hash, and never changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from hyper.errors import ResourceExhaustedError

FORMAT = 1
MAX_SHARDS = 2**18  # of all layers: more of them are better published


@dataclass(frozen=True, slots=True)
class Layer:
    """Shards under one prefix, by their index ("0/3/1")."""

    prefix: str
    shards: frozenset[str]


@dataclass(frozen=True, slots=True)
class Overlay:
    """All places of one array.

    Args:
        base: prefix of the plain array below; "" for none.
        external: of a registered array: its store and how its objects are named.
        layers: oldest first; no shard is in two of them.
    """

    base: str
    external: Mapping[str, Any] | None = None
    layers: tuple[Layer, ...] = ()

    @property
    def prefixes(self) -> set[str]:
        """Of all objects in our bucket."""
        own = {self.base} if self.base else set()
        return own | {layer.prefix for layer in self.layers}

    def find(self, shard: str) -> str:
        """The prefix that holds a shard, if any does; "" for the external base."""
        for layer in reversed(self.layers):
            if shard in layer.shards:
                return layer.prefix
        return self.base

    def with_layer(self, prefix: str, shards: Set[str]) -> Overlay:
        """The same array with newer shards over it.

        Raises:
            ResourceExhaustedError: QUOTA_EXCEEDED.
        """
        kept = [Layer(layer.prefix, layer.shards - shards) for layer in self.layers]
        layers = (
            *(layer for layer in kept if layer.shards),
            *((Layer(prefix, frozenset(shards)),) if shards else ()),
        )
        if sum(len(layer.shards) for layer in layers) > MAX_SHARDS:
            raise ResourceExhaustedError(
                f"edits of more than {MAX_SHARDS} shards lie over this array; publish it first "
                "(`hyper publish`), or commit fewer at a time",
                reason="QUOTA_EXCEEDED",
            )
        return Overlay(self.base, self.external, layers)

    def newer_than(self, old: Overlay) -> frozenset[str] | None:
        """The shards that were written since `old`; None if this is not `old` with edits."""
        if (self.base, self.external) != (old.base, old.external):
            return None
        before = {shard: layer.prefix for layer in old.layers for shard in layer.shards}
        now = {shard: layer.prefix for layer in self.layers for shard in layer.shards}
        if not before.keys() <= now.keys():
            return None
        return frozenset(shard for shard, prefix in now.items() if before.get(shard) != prefix)


def encode_overlay(overlay: Overlay) -> bytes:
    """Its bytes; the same overlay gives the same bytes."""
    document = {
        "format": FORMAT,
        "base": overlay.base,
        "external": overlay.external,
        "layers": [[layer.prefix, sorted(layer.shards)] for layer in overlay.layers],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def decode_overlay(data: bytes) -> Overlay:
    """The overlay of these bytes."""
    document = json.loads(data)
    if document["format"] != FORMAT:
        raise ValueError(f"overlay of format {document['format']}; this gateway is too old")
    layers = tuple(Layer(prefix, frozenset(shards)) for prefix, shards in document["layers"])
    return Overlay(document["base"], document["external"], layers)
