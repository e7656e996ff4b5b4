"""Training loaders on a real gateway: order, workers that are forked or spawned, exact resume."""

from __future__ import annotations

import io
import itertools
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hyper._files import Tree
from hyper.client import Client
from hyper.datasets import Dataset
from hyper.errors import InvalidArgumentError
from hyper_servicekit.config import S3Settings
from tests.support.gateway import run_gateway, storage_client
from tests.support.servers import EtcdServer, S3Server

FILES = 41


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> S3Settings:
    return s3_server.settings(f"training-{secrets.token_hex(8)}")


@pytest.fixture(scope="module")
def dataset(
    etcd_server: EtcdServer, bucket: S3Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Dataset]:
    folder = tmp_path_factory.mktemp("gateway")
    prefix = f"/test-{secrets.token_hex(8)}"
    with (
        run_gateway(folder, etcd_server.endpoint, bucket, prefix) as gateway,
        storage_client(gateway.address) as client,
    ):
        yield _filled(client)


def _filled(client: Client) -> Dataset:
    volume = np.arange(16 * 32 * 32, dtype=np.uint16).reshape(16, 32, 32)
    with client.session("lab/train") as session:
        session.write_many((f"x/{i:03d}.npy", _npy(i)) for i in range(FILES))
        session.write("other.txt", b"text")
        session.create_array("raw", volume.shape, "uint16", shards=(8, 16, 16))[...] = volume
    return client.open_dataset("lab/train")


def _npy(number: int) -> bytes:
    out = io.BytesIO()
    np.save(out, np.full((2, 3), number, np.int64))
    return out.getvalue()


def firsts(batches: Any) -> list[list[int]]:
    return [batch[:, 0, 0].tolist() for batch in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


@pytest.mark.parametrize("workers", [0, 2])
def test_files_come_in_the_declared_order(dataset: Dataset, workers: int) -> None:
    loader = dataset.torch("x/", batch_size=4, shuffle=True, seed=3, num_workers=workers)
    expected = [loader.plan.batches(epoch) for epoch in range(2)]
    for epoch in range(2):
        assert loader.epoch == epoch
        assert firsts(loader) == expected[epoch]
    assert expected[0] != expected[1]
    assert sorted(flat(expected[0])) == list(range(FILES))


@pytest.mark.timeout(150)
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_run_goes_on_in_mid_epoch(dataset: Dataset, start: str) -> None:
    options: dict[str, Any] = {
        "batch_size": 4, "shuffle": True, "seed": 5, "num_workers": 2,
        "multiprocessing_context": start,
    }  # fmt: skip
    dataset.read("other.txt")  # the parent's channels and connections are in use
    whole = dataset.torch("x/", **options).plan.batches(0)
    first = dataset.torch("x/", **options)
    seen, state = [], {}
    for batch in first:
        seen.append(batch[:, 0, 0].tolist())
        state = json.loads(json.dumps(first.state()))
        if len(seen) == 3:
            break
    second = dataset.torch("x/", **options, resume=state)
    assert seen + firsts(second) == whole
    assert (second.epoch, second.state()["batch"]) == (1, 0)


def test_ranks_see_every_file_once(dataset: Dataset) -> None:
    ranks = [
        dataset.torch("x/", batch_size=5, shuffle=True, rank=rank, world=2) for rank in range(2)
    ]
    seen = [flat(firsts(loader)) for loader in ranks]
    assert len(seen[0]) == len(seen[1])
    assert set(seen[0]) | set(seen[1]) == set(range(FILES))


def _length(path: str, data: bytes) -> int:
    return len(data)


def test_packs_are_fetched_once_for_all_epochs(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    fetch = Tree.fetch

    def counted(tree: Tree, key: str, start: int, stop: int) -> bytes | None:
        fetched.append(key)
        return fetch(tree, key, start, stop)

    monkeypatch.setattr(Tree, "fetch", counted)
    loader = dataset.torch("x/", batch_size=4, shuffle=True, seed=3, cache=tmp_path / "c")
    expected = [loader.plan.batches(epoch) for epoch in range(3)]
    assert firsts(loader) == expected[0]
    assert fetched
    fetched.clear()
    assert [firsts(loader) for _ in range(2)] == expected[1:]
    assert not fetched


def test_decoding_is_the_callers(dataset: Dataset) -> None:
    assert next(iter(dataset.torch("other", decode=_length))).tolist() == [4]


@pytest.mark.timeout(150)
@pytest.mark.parametrize("workers", [0, 2])
def test_patches_of_an_array(dataset: Dataset, workers: int) -> None:
    array = dataset["raw"]
    whole = array[...]
    loader = array.torch((4, 16, 16), batch_size=3, shuffle=True, num_workers=workers)
    order = iter(flat(loader.plan.batches(0)))
    count = 0
    for batch in loader:
        assert batch.dtype == torch.uint16
        for patch in batch:
            z, y, x = loader._source.corner(next(order))  # type: ignore[attr-defined]
            np.testing.assert_array_equal(patch.numpy(), whole[z : z + 4, y : y + 16, x : x + 16])
            count += 1
    assert count == 4 * 2 * 2
    with pytest.raises(InvalidArgumentError):
        array.torch((4, 64, 16))
    with pytest.raises(InvalidArgumentError):
        dataset.torch("none/")
