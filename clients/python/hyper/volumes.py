"""Volumes on the local disk, read slice by slice: Zarr v2 and v3, N5, precomputed, HDF5, TIFF.

A volume is a folder whose metadata say what it is, an HDF5 file, or a TIFF file of many pages. All
of it is checked as input of unknown origin: nothing outside the folder or file is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import numpy as np

from hyper import foreign, images
from hyper._blocks import Blocks
from hyper.arrays import Selection
from hyper.codecs import CodecError, Layout
from hyper.errors import DataLossError, InvalidArgumentError

if TYPE_CHECKING:
    import h5py

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
TIFF_SUFFIXES = (".tif", ".tiff")
_KINDS = ("b", "i", "u", "f", "c")
_METADATA = ("zarr.json", ".zarray", "info", "attributes.json")


class Volume(Protocol):
    """What can be imported: like a numpy array that is read piece by piece."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis, (c, z, y, x) order."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an element."""

    @property
    def chunks(self) -> tuple[int, ...]:
        """What is best read at once."""

    @property
    def voxel_size_nm(self) -> tuple[float, float, float] | None:
        """(z, y, x), or None if it is not said."""

    @property
    def fill_value(self) -> Any:
        """Of what nobody has written."""

    def __getitem__(self, key: Any) -> np.ndarray:
        """A slice."""


class _Files:
    """Objects of a folder, as `Blocks` asks for them to read."""

    def __init__(self, root: Path, naming: dict[str, Any]) -> None:
        self._root = root.resolve()
        self._naming = naming

    def sign(self, objects: Iterable[str], method: str) -> None:
        """Nothing is to be signed."""

    def get(
        self,
        key: str,
        start: int | None = None,
        stop: int | None = None,
        *,
        last: int | None = None,
    ) -> bytes | None:
        """Bytes of a file, or None if there is none."""
        index = [int(part) for part in key.partition("/c/")[2].split("/")]
        path = self._root / foreign.object_name(self._naming, index)
        try:
            if not path.resolve().is_relative_to(self._root):
                raise InvalidArgumentError(f"{path}: leads out of {self._root}")
            with path.open("rb") as file:
                size = path.stat().st_size
                first = max(0, size - last) if last is not None else start or 0
                file.seek(first)
                return file.read() if stop is None else file.read(max(0, stop - first))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def borrow(self, key: str, start: int, stop: int) -> bytes | None:
        """The same."""
        return self.get(key, start, stop)


class FolderVolume:
    """A Zarr, N5 or precomputed array in a folder.

    Args:
        root: the folder.
        found: what its metadata say.
    """

    def __init__(self, root: Path, found: foreign.Foreign) -> None:
        layout = Layout.of(found.document)
        files: Any = _Files(root, found.naming)
        self._root, self._layout = root, layout
        self._blocks = Blocks(files, f"local/{uuid4().hex}", "", layout, mutable=False)
        voxel = found.document["attributes"].get("voxel_size_nm")
        self.voxel_size_nm: tuple[float, float, float] | None = tuple(voxel) if voxel else None
        self.shape, self.chunks = layout.shape, layout.chunks
        self.dtype: np.dtype[Any] = layout.codec.dtype
        self.fill_value: Any = layout.fill[()]

    def __getitem__(self, key: Any) -> np.ndarray:
        """A slice.

        Raises:
            DataLossError: a chunk cannot be decoded.
        """
        selection = Selection.of(key, self.shape)
        try:
            return np.asarray(selection.finish(self._blocks.read(selection.ranges)))
        except CodecError as error:
            raise DataLossError(f"{self._root}: {error}") from error


class Hdf5Volume:
    """A dataset of an HDF5 file."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self.shape = tuple(dataset.shape)
        self.dtype: np.dtype[Any] = dataset.dtype.newbyteorder("=")
        self.chunks = tuple(dataset.chunks or dataset.shape)
        self.fill_value: Any = dataset.fillvalue
        sizes = dataset.attrs.get("element_size_um")  # Fiji's and ilastik's, (z, y, x)
        good = sizes is not None and np.shape(sizes) == (3,)
        self.voxel_size_nm: tuple[float, float, float] | None = (
            tuple(float(n) * 1e3 for n in sizes) if good else None  # type: ignore[assignment]
        )

    def __getitem__(self, key: Any) -> np.ndarray:
        """A slice.

        Raises:
            DataLossError: HDF5 cannot read it.
        """
        try:
            return np.asarray(self._dataset[key], self.dtype)
        except OSError as error:
            raise DataLossError(f"{self._dataset.file.filename}: {error}") from error


class TiffVolume:
    """A TIFF file of many pages, all of one size and dtype: (z, y, x).

    Args:
        pages: of the file.
        path: what errors call it.
    """

    def __init__(self, pages: Any, path: Path) -> None:
        first = pages[0]
        if first.dtype is None or first.dtype.kind not in _KINDS or len(first.shape) != 2:
            raise InvalidArgumentError(
                f"{path}: has pages of shape {first.shape}; a stack has grey images",
                reason="INVALID_IMAGE",
            )
        images.check_size(first.shape, str(path))
        self._pages, self._path = pages, path
        self.shape: tuple[int, ...] = (len(pages), *map(int, first.shape))
        self.dtype: np.dtype[Any] = first.dtype.newbyteorder("=")
        self.chunks: tuple[int, ...] = (1, *self.shape[1:])
        self.voxel_size_nm: tuple[float, float, float] | None = None
        self.fill_value: Any = 0

    def __getitem__(self, key: Any) -> np.ndarray:
        """A slice; every page that it touches is decoded.

        Raises:
            InvalidArgumentError: INVALID_IMAGE: a page is damaged, or unlike the others.
        """
        selection = Selection.of(key, self.shape)
        found = np.empty((len(selection.ranges[0]), *self.shape[1:]), self.dtype)
        for at, number in enumerate(selection.ranges[0]):
            page = self._page(number)
            if (page.shape, page.dtype) != (self.shape[1:], self._pages[0].dtype):
                raise InvalidArgumentError(
                    f"{self._path}: page {number} is {page.dtype} {page.shape}, the first is "
                    f"{self.dtype} {self.shape[1:]}",
                    reason="INVALID_IMAGE",
                )
            found[at] = self._pixels(number, page)
        return np.asarray(selection.finish(found[(slice(None), *selection.forward[1:])]))

    def _page(self, number: int) -> Any:
        try:
            return self._pages[number]
        except Exception as error:  # tifffile raises whatever its parser does
            raise self._damaged(number, error) from error

    def _pixels(self, number: int, page: Any) -> np.ndarray:
        try:
            return np.asarray(page.asarray())
        except Exception as error:  # and its codecs
            raise self._damaged(number, error) from error

    def _damaged(self, number: int, error: Exception) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"{self._path}: page {number} is damaged ({str(error)[:120]})", reason="INVALID_IMAGE"
        )


@contextmanager
def _open_tiff(path: Path) -> Iterator[TiffVolume]:
    import tifffile

    try:
        file = tifffile.TiffFile(path)
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise InvalidArgumentError(
            f"{path}: is no TIFF file ({str(error)[:120]})", reason="INVALID_IMAGE"
        ) from error
    with file:
        try:
            volume = TiffVolume(file.pages, path)
        except (ValueError, IndexError, tifffile.TiffFileError) as error:
            raise InvalidArgumentError(
                f"{path}: its pages cannot be listed ({str(error)[:120]})", reason="INVALID_IMAGE"
            ) from error
        yield volume


def is_volume(path: Path) -> bool:
    """Whether `path` is a volume rather than a folder of images."""
    if path.suffix.lower() in (*HDF5_SUFFIXES, *TIFF_SUFFIXES) and path.is_file():
        return True
    return path.is_dir() and any((path / name).is_file() for name in _METADATA)


@contextmanager
def open_volume(path: Path, inner: str = "") -> Iterator[Volume]:
    """The volume at `path`.

    Args:
        path: a folder, or an HDF5 file.
        inner: name of the dataset in an HDF5 file (its only one by default), key of a scale of
            precomputed (the first one by default).

    Raises:
        InvalidArgumentError: it is none, or one that is not supported.
    """
    if path.suffix.lower() in HDF5_SUFFIXES:
        with _open_hdf5(path, inner) as volume:
            yield volume
    elif path.suffix.lower() in TIFF_SUFFIXES:
        with _open_tiff(path) as stack:
            yield stack
    else:
        yield FolderVolume(path, _describe(path, inner))


def _describe(path: Path, inner: str) -> foreign.Foreign:
    def read(name: str) -> bytes | None:
        file = path / name
        if not file.is_file():
            return None
        with file.open("rb") as stream:
            return stream.read(foreign.MAX_METADATA_BYTES + 1)

    if (data := read("zarr.json")) is not None:
        return foreign.zarr3(data)
    if (data := read(".zarray")) is not None:
        return foreign.zarr2(data, read(".zattrs"))
    if (data := read("info")) is not None:
        return foreign.precomputed(data, inner)
    if (data := read("attributes.json")) is not None:
        return foreign.n5(data)
    raise InvalidArgumentError(f"{path}: none of {', '.join(_METADATA)} is in it")


@contextmanager
def _open_hdf5(path: Path, inner: str) -> Iterator[Hdf5Volume]:
    try:
        import h5py
    except ImportError as error:
        raise InvalidArgumentError("HDF5 needs h5py: pip install h5py") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InvalidArgumentError(f"{path}: is no HDF5 file ({str(error)[:120]})") from error
    with file:
        yield Hdf5Volume(_find_dataset(file, inner, path))


def _find_dataset(file: h5py.File, inner: str, path: Path) -> h5py.Dataset:
    """The dataset meant; links that lead to other files are refused before they are followed."""
    import h5py

    def step(group: h5py.Group, part: str) -> Any:
        link = group.get(part, getlink=True)
        if link is None:
            raise InvalidArgumentError(f"{path}: has no dataset {inner!r}")
        if not isinstance(link, h5py.HardLink):
            raise InvalidArgumentError(f"{path}: {part!r} is a link; name what it leads to")
        return group[part]

    found: Any = file
    for part in inner.strip("/").split("/") if inner.strip("/") else ():
        if not isinstance(found, h5py.Group):
            raise InvalidArgumentError(f"{path}: has no dataset {inner!r}")
        found = step(found, part)
    if isinstance(found, h5py.Group):
        names = [name for name in found if isinstance(found.get(name, getlink=True), h5py.HardLink)]
        inside = [found[name] for name in names if isinstance(found[name], h5py.Dataset)]
        if len(inside) != 1:
            raise InvalidArgumentError(
                f"{path}: name one of its datasets ({', '.join(names[:10]) or 'it has none'})"
            )
        found = inside[0]
    if found.is_virtual or found.external:
        raise InvalidArgumentError(f"{path}: {found.name} lies in other files")
    if found.dtype.kind not in _KINDS or not found.shape or 0 in found.shape:
        raise InvalidArgumentError(
            f"{path}: {found.name} is of shape {found.shape} and dtype {found.dtype}; an array "
            "holds numbers and has no empty axis"
        )
    return found
