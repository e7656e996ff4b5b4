from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from hyper import sample_data
from hyper.errors import UnavailableError


def test_the_synthetic_stack_is_the_same_each_time() -> None:
    first = sample_data.synthetic_stack(3, 96, seed=5, max_shift_px=8)
    again = sample_data.synthetic_stack(3, 96, seed=5, max_shift_px=8)
    other = sample_data.synthetic_stack(3, 96, seed=6, max_shift_px=8)
    assert first.sections.shape == (3, 96, 96) and first.sections.dtype == np.uint8
    assert np.array_equal(first.sections, again.sections)
    assert not np.array_equal(first.sections, other.sections)
    assert first.sections.min() >= 1, "0 means: no tissue"
    assert np.abs(first.shift_px).max() <= 8


def test_neighbours_look_alike_where_they_are_not_moved() -> None:
    stack = sample_data.synthetic_stack(6, 128, seed=1, max_shift_px=0)
    a, b, far = (stack.sections[z].astype(float) for z in (0, 1, 5))
    middle = np.s_[40:88, 40:88]  # rotation is about the centre: little motion there

    def correlation(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.corrcoef(p[middle].ravel(), q[middle].ravel())[0, 1])

    assert correlation(a, b) > correlation(a, far)


def test_find_prefers_the_configured_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / sample_data.SAMPLE
    folder.mkdir(parents=True)
    (folder / "z00.png").write_bytes(b"x")
    monkeypatch.setenv("HYPER_DATA_DIR", str(tmp_path))
    assert sample_data.find() == folder


def test_find_says_none_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYPER_DATA_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert sample_data.find() is None


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A web server on loopback in the place of the public original; yields its folder."""
    folder = tmp_path / "origin"
    folder.mkdir()
    contents = {f"z{z:02}.tif": bytes([z]) * 1000 for z in range(3)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    handler = functools.partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        monkeypatch.setattr(sample_data, "_ORIGIN", f"http://127.0.0.1:{server.server_port}/")
        digests = {name: hashlib.sha256(c).hexdigest() for name, c in contents.items()}
        monkeypatch.setattr(sample_data, "_SHA256", digests)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("HYPER_DATA_DIR", str(tmp_path / "none"))
        monkeypatch.chdir(tmp_path)
        yield folder
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (base's name)
        """Nothing."""


def test_fetch_fills_the_cache_that_find_looks_into(origin: Path) -> None:
    assert sample_data.find() is None
    folder = sample_data.fetch(progress=False)
    assert sorted(path.name for path in folder.iterdir()) == ["z00.tif", "z01.tif", "z02.tif"]
    assert sample_data.find() == folder


def test_fetch_refuses_what_is_not_the_original(origin: Path) -> None:
    (origin / "z01.tif").write_bytes(b"something else")
    with pytest.raises(UnavailableError, match=r"z01\.tif.*HYPER_DATA_DIR"):
        sample_data.fetch(progress=False)
    assert not (sample_data.cache_folder() / sample_data.SAMPLE / "z01.tif").exists()


def test_fetch_says_what_to_do_without_a_network(
    origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_data, "_ORIGIN", "http://127.0.0.1:9/")
    with pytest.raises(UnavailableError, match="check the network"):
        sample_data.fetch(progress=False)
