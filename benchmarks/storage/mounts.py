"""The rows about the mount and the loaders: against local files."""

from __future__ import annotations

import io
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.storage.juicefs import JuiceFs
from benchmarks.storage.place import Place
from benchmarks.storage.rounds import PeerMissingError, cpu_of, timed
from hyper.datasets import Dataset
from hyper.mount.process import Options, mount, order, umount

MB = 2**20
_NO_MOSAIC = "not run: its package wants torchvision and transformers for another torch than ours"


@contextmanager
def mounted(where: Place, name: str, cache: Path) -> Iterator[tuple[Path, int]]:
    """A read-only mount with a cache folder of its own; the folder and the process."""
    os.environ["HYPER_ENDPOINT"] = where.cluster.endpoint
    os.environ["HYPER_HOME"] = str(where.scratch / "home")
    folder = where.scratch / f"mount-{time.monotonic_ns()}"
    folder.mkdir(parents=True)
    mount(Options(address=name, folder=str(folder), cache=str(cache)))
    try:
        yield folder, int(order(folder, "status")["pid"])
    finally:
        umount(folder)


def _juicefs(where: Place) -> JuiceFs | str:
    """The peer with the same bucket, or why there is none."""
    try:
        folder = where.scratch / f"juicefs-{time.monotonic_ns()}"
        return JuiceFs(where.cluster.s3(), folder)
    except PeerMissingError as error:
        return str(error)


def _filled(peer: JuiceFs | str, files: Mapping[str, bytes]) -> JuiceFs | str:
    """The peer once it has these files, or why it has not."""
    if isinstance(peer, str):
        return peer
    try:
        with peer.mounted() as folder:
            for path, data in files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(data)
    except PeerMissingError as error:
        return str(error)
    return peer


def mount_seq_mb_s(where: Place) -> dict[str, Any]:
    """A large file read once, in order, by a mount that has never seen it."""
    size = (64 if where.quick else 256) * MB
    name, data = where.name(), os.urandom(size)
    with where.client.session(name) as session:
        session.write("large", data)
    peer = _filled(_juicefs(where), {"large": data})

    def read(path: Path) -> float:
        begin = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            while file.read(MB):
                pass
        return size / MB / (time.perf_counter() - begin)

    rates, cpus, theirs = [], [], []
    for number in range(where.rounds):
        with mounted(where, name, where.scratch / f"cache-{number}") as (folder, pid):
            used = cpu_of([pid])
            rates.append(read(folder / "large"))
            cpus.append((cpu_of([pid]) - used) * 1e3 / (size / MB))
        if isinstance(peer, JuiceFs):
            with peer.mounted() as folder:
                theirs.append(read(folder / "large"))
    return {
        "value": statistics.median(rates), "cpu_ms_mb": statistics.median(cpus),
        "juicefs": statistics.median(theirs) if theirs else None,
        **({"juicefs_reason": peer} if isinstance(peer, str) else {}),
    }  # fmt: skip


def mount_small_vs_local(where: Place) -> dict[str, Any]:
    """Files of 16 KB read in a shuffled order: local ones against the mount's, cold and again."""
    count, size = (500, 2**14) if where.quick else (3000, 2**14)
    name, local = where.name(), where.scratch / "local-small"
    files = {f"{i // 100:03d}/{i:05d}": os.urandom(size) for i in range(count)}
    with where.client.session(name) as session:
        session.write_many(files.items())
    for path, data in files.items():
        (local / path).parent.mkdir(parents=True, exist_ok=True)
        (local / path).write_bytes(data)
    peer = _filled(_juicefs(where), files)
    order_of = random.Random(1).sample(sorted(files), count)

    def read(root: Path) -> float:
        def work() -> None:
            for path in order_of:
                with (root / path).open("rb", buffering=0) as file:
                    assert len(file.read()) == size

        return timed(work)["s"]

    first, again, base, theirs = [], [], [], []
    for number in range(where.rounds):
        base.append(read(local))
        with mounted(where, name, where.scratch / f"cache-s{number}") as (folder, _):
            first.append(read(folder))
            again.append(read(folder))
        if isinstance(peer, JuiceFs):
            with peer.mounted() as folder:
                theirs.append((read(folder), read(folder)))
    result: dict[str, Any] = {
        "value": _ratio(base, again),
        "cold_vs_local": _ratio(base, first),
        "files_per_s": count / statistics.median(again),
        "cold_files_per_s": count / statistics.median(first),
        "juicefs": None,
    }
    if theirs:
        cold, warm = zip(*theirs, strict=True)
        result["juicefs"] = {"vs_local": _ratio(base, warm), "cold_vs_local": _ratio(base, cold)}
    if isinstance(peer, str):
        result["juicefs_reason"] = peer
    return result


def _ratio(base: Sequence[float], others: Sequence[float]) -> float:
    """How fast compared with `base`, round by round; 1 is as fast."""
    return statistics.median(b / o for b, o in zip(base, others, strict=True))


class _Local:
    """Local files as a torch dataset."""

    def __init__(self, root: Path, paths: list[str], decode: Callable[[str, bytes], Any]) -> None:
        self.root, self.paths, self.decode = root, paths, decode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        path = self.paths[index]
        return self.decode(path, (self.root / path).read_bytes())


def as_bytes(path: str, data: bytes) -> np.ndarray:
    """A sample that is not decoded."""
    return np.frombuffer(bytearray(data), np.uint8)


def decoded(path: str, data: bytes) -> np.ndarray:
    """A JPEG as an array."""
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def _loader(where: Place, files: dict[str, bytes], decode: Any, batch: int) -> dict[str, Any]:
    from torch.utils.data import DataLoader

    name, local = where.name(), where.scratch / f"loader-{time.monotonic_ns()}"
    local.mkdir(parents=True)
    with where.client.session(name) as session:
        session.write_many(files.items())
    for path, data in files.items():
        (local / path).write_bytes(data)
    dataset: Dataset = where.dataset(name)
    options = {"num_workers": 1, "prefetch_factor": 4}
    source: Any = _Local(local, sorted(files), decode)
    theirs = DataLoader(source, batch_size=batch, shuffle=True, **options)  # type: ignore[arg-type]
    ours = dataset.torch(
        batch_size=batch, decode=decode, shuffle=True, cache=where.scratch / "packs", **options
    )

    def epoch(loader: Any) -> float:
        def work() -> None:
            assert sum(len(each) for each in loader) == len(files)

        return timed(work)["s"]

    epoch(ours)
    pairs = [(epoch(theirs), epoch(ours)) for _ in range(where.rounds)]
    return {
        "value": statistics.median(a / b for a, b in pairs),
        "samples_per_s": len(files) / statistics.median(b for _, b in pairs),
        "local_samples_per_s": len(files) / statistics.median(a for a, _ in pairs),
        "mosaicml": None, "mosaicml_reason": _NO_MOSAIC,
    }  # fmt: skip


def loader_decode_vs_local(where: Place) -> dict[str, Any]:
    """JPEGs of 256 x 256 decoded in a DataLoader's worker, shuffled, against local files."""
    rng = np.random.default_rng(0)
    files = {}
    for number in range(200 if where.quick else 1500):
        smooth = np.kron(
            rng.integers(0, 255, (16, 16, 3), np.uint8), np.ones((16, 16, 1), np.uint8)
        )
        buffer = io.BytesIO()
        Image.fromarray(smooth).save(buffer, "JPEG", quality=90)
        files[f"{number:05d}.jpg"] = buffer.getvalue()
    return _loader(where, files, decoded, 32)


def loader_raw_vs_local(where: Place) -> dict[str, Any]:
    """Samples of 64 KB as bytes, shuffled, against local files."""
    files = {f"{i:05d}": os.urandom(2**16) for i in range(400 if where.quick else 3000)}
    return _loader(where, files, as_bytes, 32)
