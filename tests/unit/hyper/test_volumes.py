"""Volumes on disk: what others write is read, and what we write is read by others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import tensorstore
import tifffile
import zarr

from hyper import exports
from hyper.errors import DataLossError, InvalidArgumentError
from hyper.volumes import is_volume, open_volume

DATA = np.random.default_rng(0).integers(0, 60000, (20, 33, 17)).astype(np.uint16)


class _Array(SimpleNamespace):
    """An array in memory, as exports see one."""

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.asarray(self.data[key])


def array(data: np.ndarray = DATA) -> Any:
    return _Array(
        data=data, shape=data.shape, dtype=data.dtype, chunks=(8, 16, 16), shards=data.shape,
        ndim=data.ndim, voxel_size_nm=(40.0, 4.0, 4.0), fill_value=0, name="a",
    )  # fmt: skip


def check(path: Path, inner: str = "", voxel: object = (40.0, 4.0, 4.0)) -> None:
    assert is_volume(path)
    with open_volume(path, inner) as volume:
        assert (volume.shape, volume.dtype) == (DATA.shape, DATA.dtype)
        assert volume.voxel_size_nm == (pytest.approx(voxel) if voxel else None)
        np.testing.assert_array_equal(volume[...], DATA)
        np.testing.assert_array_equal(volume[3:9, ::2, 16], DATA[3:9, ::2, 16])


def test_n5_is_what_tensorstore_and_we_read(tmp_path: Path) -> None:
    exports.write_n5(array(), tmp_path)
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{tmp_path}/"}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result().T, DATA)
    check(tmp_path)


def test_hdf5_is_what_h5py_and_we_read(tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    exports.write_hdf5(array(), path)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["data"][...], DATA)
    check(path)
    check(path, "data")


def test_precomputed_is_what_tensorstore_and_we_read(tmp_path: Path) -> None:
    exports.write_precomputed([array()], tmp_path)
    spec = {
        "driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": f"{tmp_path}/"}
    }  # fmt: skip
    found = tensorstore.open(spec).result().read().result()[..., 0].T
    np.testing.assert_array_equal(found, DATA)
    check(tmp_path)


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_of_zarr_python_is_read(tmp_path: Path, version: Any) -> None:
    zarr.create_array(str(tmp_path / "z"), data=DATA, chunks=(8, 16, 16), zarr_format=version)
    check(tmp_path / "z", voxel=None)


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "float32"])
def test_a_tiff_of_many_pages_is_read(tmp_path: Path, dtype: str) -> None:
    data = DATA.astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", data, compression="zlib")
    with open_volume(tmp_path / "a.tif") as volume:
        assert (volume.shape, volume.dtype) == (data.shape, data.dtype)
        np.testing.assert_array_equal(volume[3:9, ::2, 16], data[3:9, ::2, 16])
        np.testing.assert_array_equal(volume[...], data)
    cut = (tmp_path / "a.tif").read_bytes()[:2000]
    (tmp_path / "b.tif").write_bytes(cut)
    with pytest.raises(InvalidArgumentError), open_volume(tmp_path / "b.tif") as volume:
        volume[...]
    with tifffile.TiffWriter(tmp_path / "c.tif") as file:
        file.write(DATA[0])
        file.write(DATA[0, :5])
    with open_volume(tmp_path / "c.tif") as volume, pytest.raises(InvalidArgumentError, match="1"):
        volume[...]


def test_files_that_lead_elsewhere_are_not_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["data"] = DATA
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["link"] = h5py.ExternalLink("secret.h5", "data")
        file["group/soft"] = h5py.SoftLink("/link")
        layout = h5py.VirtualLayout(DATA.shape, DATA.dtype)
        layout[...] = h5py.VirtualSource("secret.h5", "data", DATA.shape)
        file.create_virtual_dataset("virtual", layout)
        raw = tmp_path / "raw"
        raw.write_bytes(bytes(100))
        file.create_dataset("outside", (10,), "u1", external=[(str(raw), 0, 100)])
    for inner in ("link", "group/soft", "virtual", "outside", "nothing", "group"):
        with pytest.raises(InvalidArgumentError), open_volume(tmp_path / "a.h5", inner):
            pytest.fail(inner)
    zarr.create_array(str(tmp_path / "z"), data=DATA[0], chunks=(40, 40), zarr_format=3)
    chunk = tmp_path / "z" / "c" / "0" / "0"
    chunk.rename(tmp_path / "moved")
    chunk.symlink_to(tmp_path / "moved")
    with open_volume(tmp_path / "z") as volume, pytest.raises(InvalidArgumentError, match="out of"):
        volume[...]


@pytest.mark.parametrize(
    "make",
    [
        lambda f: f.create_dataset("d", (0, 3), "u1"),
        lambda f: f.create_dataset("d", data=[b"text"]),
        lambda f: f.create_dataset("d", data=np.zeros(3, [("a", "i4")])),
        lambda f: f.create_group("d"),
    ],
    ids=("empty", "text", "records", "group"),
)
def test_datasets_that_are_no_arrays_are_refused(tmp_path: Path, make: Any) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file)
    with pytest.raises(InvalidArgumentError), open_volume(tmp_path / "a.h5", "d"):
        pass
    (tmp_path / "b.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(InvalidArgumentError), open_volume(tmp_path / "b.h5"):
        pass


def test_a_damaged_block_is_said(tmp_path: Path) -> None:
    exports.write_n5(array(), tmp_path)
    block = tmp_path / "0" / "0" / "0"
    block.write_bytes(block.read_bytes()[:50])
    with open_volume(tmp_path) as volume, pytest.raises(DataLossError):
        volume[...]
