"""The scheduler's state in etcd and its results in object storage.

Under `{etcd_prefix}/scheduler/`:

    leader                                   the election's key
    workflows/{tenant}/{workflow}/recipe     the YAML as submitted; never changes
    workflows/{tenant}/{workflow}/head       states and times
    workflows/{tenant}/{workflow}/pages/{experiment}/{page}   4,096 tasks
    requests/{request_id}                    what was done for it; under a lease
    forgotten/{tenant}/{workflow}            its results are being deleted; all else of it is gone
    drained/{worker}
    placement/machines/{n}                   machines that are paid for, a thousand a key
    placement/accounts/{workflow}            what each workflow's have cost
    identity                                 of this deployment, in the tag of its machines

Every write carries the fence of the leadership it was decided under.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hyper.errors import HyperError, NotFoundError
from hyper_scheduler.core.commands import Commit, Put
from hyper_scheduler.core.commit import results_folder, results_root, workflow_path
from hyper_scheduler.core.model import Recipe
from hyper_scheduler.core.pages import Page, PageKey
from hyper_scheduler.core.restore import StoredWorkflow
from hyper_scheduler.core.state import Request
from hyper_scheduler.recipe import parse_recipe
from hyper_servicekit.etcd import Compare, Etcd, KeyValue, Lease, LeaseLostError, Op
from hyper_servicekit.logs import get_logger
from hyper_servicekit.objects import ObjectStore

log = get_logger(__name__)

MAX_OPERATIONS = 100
MAX_BYTES = 1_000_000  # of one transaction; etcd refuses 1.5 MiB
CACHED_OBJECTS = 256
_LEASE_RENEW_S = 3_600.0
_LOADS_AT_ONCE = 8
_DELETES = 1_000  # in flight; a list of a folder that holds millions is not a task each


class DeposedError(Exception):
    """A write was refused because another scheduler leads, or the leader's lease is gone."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Everything that a new leader starts from."""

    workflows: dict[str, StoredWorkflow]
    requests: dict[str, Request]
    drained: list[str]
    forgotten: list[str]


class Store:
    """Reads and writes it.

    Args:
        etcd: entered.
        objects: for results.
        etcd_prefix: of the cluster.
        request_ttl_s: for how long answers to repeated requests are kept.
        compact_bytes: etcd's history is cut after so much was written; 0: that is etcd's business.
    """

    def __init__(
        self,
        etcd: Etcd,
        objects: ObjectStore,
        etcd_prefix: str,
        request_ttl_s: float,
        compact_bytes: float = 0.0,
    ) -> None:
        self._etcd, self._objects = etcd, objects
        self._compact_bytes = compact_bytes
        self._written_bytes = self._cut_at = 0
        self._root = f"{etcd_prefix}/scheduler/"
        self._request_ttl_s = request_ttl_s
        self._lease: tuple[Lease, float] | None = None
        self._cache: dict[str, dict[int, dict[str, Any]]] = {}
        self._recipes: dict[str, Recipe] = {}
        self._ledger: dict[str, bytes] = {}  # as it was read and written last

    @property
    def leader_key(self) -> str:
        """The election's key."""
        return f"{self._root}leader"

    async def load(self) -> Stored:
        """Everything, for a new leader or a follower's list."""
        items, _ = await self._etcd.get_prefix(f"{self._root}workflows/")
        requests: dict[str, Request] = {}
        found, _ = await self._etcd.get_prefix(f"{self._root}requests/")
        for item in found:
            facts = json.loads(item.value)
            request_id = item.key.rpartition("/")[2]
            requests[request_id] = Request(request_id, facts["kind"], facts["name"])
        drained, _ = await self._etcd.get_prefix(f"{self._root}drained/")
        names = [item.key.rpartition("/")[2] for item in drained]
        notes, _ = await self._etcd.get_prefix(f"{self._root}forgotten/")
        forgotten = ["tenants/{}/workflows/{}".format(*item.key.split("/")[-2:]) for item in notes]
        return Stored(await self._workflows(items), requests, names, forgotten)

    async def load_workflow(self, name: str) -> StoredWorkflow | None:
        """One workflow, or None."""
        items, _ = await self._etcd.get_prefix(f"{self._root}{workflow_path(name)}/")
        return (await self._workflows(items)).get(name)

    async def _workflows(self, items: list[KeyValue]) -> dict[str, StoredWorkflow]:
        heads: dict[str, bytes] = {}
        recipes: dict[str, str] = {}
        pages: dict[str, dict[PageKey, bytes]] = {}
        for item in items:
            _, tenant, workflow, kind, *rest = item.key.removeprefix(self._root).split("/")
            name = f"tenants/{tenant}/workflows/{workflow}"
            if kind == "head":
                heads[name] = item.value
            elif kind == "recipe":
                recipes[name] = item.value.decode()
            else:
                experiment, number = rest
                key = PageKey(name, experiment, int(number))
                pages.setdefault(name, {})[key] = item.value
        result: dict[str, StoredWorkflow] = {}
        for name, head in heads.items():
            text = recipes[name]
            recipe = await self._recipe(name, text)
            if recipe is not None:
                result[name] = StoredWorkflow(head, recipe, text, pages.get(name, {}))
        return result

    async def _recipe(self, name: str, text: str) -> Recipe | None:
        recipe = self._recipes.get(name)
        if recipe is None:
            try:
                recipe = await asyncio.to_thread(parse_recipe, text)
            except HyperError as error:  # of a newer version, say: leave it alone
                log.error("stored recipe not understood", workflow=name, error=str(error))
                return None
            self._recipes[name] = recipe
            if len(self._recipes) > 10_000:
                self._recipes.pop(next(iter(self._recipes)))
        return recipe

    async def write_objects(self, commit: Commit) -> None:
        """The results that a commit's transactions will name."""
        limit = asyncio.Semaphore(_LOADS_AT_ONCE)

        async def put(key: str, data: bytes) -> None:
            async with limit:
                await self._objects.put(key, data)

        await asyncio.gather(*(put(each.key, each.data) for each in commit.objects))

    async def write(self, puts: Iterable[Put], fence: Compare) -> None:
        """One transaction.

        Writing the same again is harmless: only the leader writes these keys, in order.

        Raises:
            DeposedError: the fence does not hold.
            UnavailableError: etcd cannot be reached; the outcome is unknown.
        """
        operations: list[Op] = []
        size = 0
        for put in puts:
            size += len(put.key) + len(put.value or b"")
            key = f"{self._root}{put.key}"
            if put.value is None:
                operations.append(Op.delete_prefix(key) if put.below else Op.delete(key))
            else:
                lease = await self._request_lease() if put.expires else 0
                operations.append(Op.put(key, put.value, lease))
        try:
            result = await self._etcd.transact([fence], operations)
        except LeaseLostError:
            self._lease = None  # somebody has revoked it: the next try takes a new one
            raise
        if not result.succeeded:
            raise DeposedError("another scheduler leads")
        await self._cut_history(size, result.revision)

    async def load_ledger(self) -> dict[str, Any]:
        """What machines have cost, in the parts that `Ledger.parts` had; empty at first."""
        root = f"{self._root}placement/"
        items, _ = await self._etcd.get_prefix(root)
        self._ledger = {item.key.removeprefix(root): item.value for item in items}
        return {name: json.loads(value) for name, value in self._ledger.items()}

    async def save_ledger(self, parts: Mapping[str, Any], fence: Compare) -> None:
        """Durable on return. Parts that have not changed are not written again.

        Raises:
            DeposedError: another scheduler leads.
        """
        new = {
            name: json.dumps(part, separators=(",", ":")).encode() for name, part in parts.items()
        }
        puts = [Put(name, value) for name, value in new.items() if self._ledger.get(name) != value]
        puts += [Put(name, None) for name in self._ledger.keys() - new.keys()]
        for batch in transactions((replace(put, key=f"placement/{put.key}"),) for put in puts):
            await self.write(batch, fence)
        self._ledger = new

    async def has_identity(self) -> bool:
        """Whether `identity` has been asked for before."""
        return await self._etcd.get(f"{self._root}identity") is not None

    async def identity(self, fence: Compare) -> str:
        """Digits that no other deployment has; made when first asked for.

        Raises:
            DeposedError: another scheduler leads.
        """
        found = await self._etcd.get(f"{self._root}identity")
        if found is not None:
            return found.value.decode()
        made = secrets.token_hex(4)
        await self.write([Put("identity", made.encode())], fence)
        return made

    async def _cut_history(self, size: int, revision: int) -> None:
        """Pages are written again and again: their old revisions would fill etcd between its own
        compactions. What was written last stays, for those who watch or list."""
        self._written_bytes += size
        if not self._compact_bytes or self._written_bytes < self._compact_bytes:
            return
        self._written_bytes, before, self._cut_at = 0, self._cut_at, revision
        if not before:
            return
        try:
            await self._etcd.compact(before)
        except HyperError as error:  # done by somebody else, or to be done the next time
            log.info("etcd's history not cut", revision=before, error=str(error))

    async def discard(self, keys: Iterable[str]) -> None:
        """Delete objects that nothing names."""
        for key in keys:
            await self._objects.delete(key)

    async def discard_results(self, workflow: str) -> None:
        """Delete all results of a workflow that is forgotten."""
        limit = asyncio.Semaphore(_LOADS_AT_ONCE)

        async def delete(key: str) -> None:
            async with limit:
                await self._objects.delete(key)

        found: list[str] = []
        async for each in self._objects.list(results_root(workflow)):
            found.append(each.key)
        for start in range(0, len(found), _DELETES):
            await asyncio.gather(*map(delete, found[start : start + _DELETES]))

    async def results(self, key: PageKey, page: Page) -> dict[int, dict[str, Any]]:
        """What the page's objects say of its done tasks."""
        folder = results_folder(key.workflow, key.experiment, key.page)
        limit = asyncio.Semaphore(_LOADS_AT_ONCE)

        async def get(name: str) -> dict[int, dict[str, Any]]:
            async with limit:
                return await self._object(f"{folder}/{name}.jsonl")

        found: dict[int, dict[str, Any]] = {}
        for part in await asyncio.gather(*(get(name) for name in list(page.segments))):
            found |= part
        return found

    async def _object(self, key: str) -> dict[int, dict[str, Any]]:
        cached = self._cache.get(key)
        if cached is not None:
            return cached
        try:
            data = await self._objects.get(key)
        except NotFoundError:  # not written yet, or written anew: memory has it
            return {}
        lines = await asyncio.to_thread(lambda: result_lines(data.decode().splitlines()))
        self._cache[key] = lines
        if len(self._cache) > CACHED_OBJECTS:
            self._cache.pop(next(iter(self._cache)))
        return lines

    async def _request_lease(self) -> int:
        now = asyncio.get_running_loop().time()
        if self._lease is None or now - self._lease[1] > _LEASE_RENEW_S:
            lease = await self._etcd.grant(self._request_ttl_s + _LEASE_RENEW_S)
            self._lease = (lease, now)
        return self._lease[0].id


def result_lines(lines: Iterable[str]) -> dict[int, dict[str, Any]]:
    """Result lines by task."""
    parsed = (json.loads(line) for line in lines)
    return {line["i"]: line for line in parsed}


def transactions(atoms: Iterable[tuple[Put, ...]]) -> Iterator[list[Put]]:
    """Pack atoms, in order and whole, into transactions that etcd takes."""
    batch: list[Put] = []
    size = 0
    for atom in atoms:
        atom_size = sum(len(put.key) + len(put.value or b"") for put in atom)
        if batch and (len(batch) + len(atom) > MAX_OPERATIONS or size + atom_size > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch += atom
        size += atom_size
    if batch:
        yield batch
