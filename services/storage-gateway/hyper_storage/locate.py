"""From the key that a client names to the object that holds the bytes.

Clients call every shard of an array by the array's own prefix. Of an edited array the shard may
lie under the prefix of the session that wrote it, or of the base; of a registered one, in another
store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hyper_storage.external import Externals, ObjectAt
from hyper_storage.files.root import ArrayRef
from hyper_storage.manifests import Manifests
from hyper_storage.views import View


@dataclass(frozen=True, slots=True)
class Place:
    """An object: in our bucket, or in another store."""

    key: str
    elsewhere: ObjectAt | None = None


class Locator:
    """Finds the objects of views."""

    def __init__(self, manifests: Manifests, externals: Externals) -> None:
        self._manifests = manifests
        self._externals = externals

    async def find(self, view: View, keys: Sequence[str]) -> list[Place]:
        """Where to read `keys`.

        Raises:
            InvalidArgumentError: one is not the view's.
        """
        readable = view.readable
        layered = {ref.prefix: ref for ref in view.arrays.values() if ref.overlay}
        layered |= {prefix: ref for prefix, ref in view.edited.items() if ref.overlay}
        places = []
        for key in keys:
            readable.check(key)
            prefix, _, shard = key.partition("/c/")
            ref = layered.get(prefix) if shard else None
            places.append(Place(key) if ref is None else await self._shard(view, ref, shard))
        return places

    async def _shard(self, view: View, ref: ArrayRef, shard: str) -> Place:
        overlay = await self._manifests.overlay(ref.overlay)
        prefix = overlay.find(shard)
        key = f"{prefix}/c/{shard}"
        if prefix or overlay.external is None:
            return Place(key)
        tenant = view.name.dataset.tenant
        return Place(key, await self._externals.locate(tenant, overlay.external, shard))
