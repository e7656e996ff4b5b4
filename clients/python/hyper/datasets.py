"""Datasets: committed versions of files and arrays, read-only."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hyper._files import FileInfo, Tree
from hyper._s3 import service_call
from hyper.arrays import Array, get_array
from hyper.names import EVERY_TENANT, Address, check_part, parse_address
from hyperapi.storage.v1 import dataset_pb2
from hyperapi.storage.v1 import dataset_service_pb2 as api

if TYPE_CHECKING:
    from hyper.client import Client

__all__ = [
    "Dataset",
    "FileInfo",
    "delete_dataset",
    "list_datasets",
    "list_versions",
    "open_address",
]

HEAD = "head"


class Dataset(Tree):
    """One version of a dataset; it never changes."""

    def __init__(self, client: Client, message: dataset_pb2.Version) -> None:
        super().__init__(client, message.name)
        self._message = message

    @property
    def version(self) -> int:
        """Its number, from 1."""
        return self._message.number

    @property
    def root(self) -> str:
        """sha256 of its root manifest: two versions with the same one hold the same."""
        return self._message.root

    @property
    def message(self) -> str:
        """What its committer said."""
        return self._message.message

    @property
    def created(self) -> datetime:
        """When it was committed."""
        return self._message.create_time.ToDatetime(tzinfo=UTC)

    @property
    def file_count(self) -> int:
        """How many files it has."""
        return self._message.files

    @property
    def file_bytes(self) -> int:
        """Sum of its files' sizes."""
        return self._message.file_bytes

    def arrays(self) -> list[str]:
        """Names of the arrays."""
        return list(self._message.arrays)

    def __repr__(self) -> str:
        return f"<Dataset {self.name}>"

    def _repr_html_(self) -> str:
        from hyper import notebooks

        return notebooks.dataset(self)


def open_address(client: Client, address: str) -> Dataset | Array:
    """What `tenant/name[@version][/array]`, or a resource name, stands for."""
    if is_resource_name(address):
        if "/arrays/" in address:
            return get_array(client, address)
        return open_version(client, address)
    parsed = parse_address(address)
    version = version_name(parsed)
    if parsed.array is not None:
        return get_array(client, f"{version}/arrays/{parsed.array}")
    return open_version(client, version)


def open_version(client: Client, name: str) -> Dataset:
    """The version of this resource name; a dataset's name stands for its newest."""
    if len(name.split("/")) == 4:
        name = f"{name}/versions/{HEAD}"
    response = service_call(client, "GetVersion", api.GetVersionRequest(name=name))
    return Dataset(client, response.version)


def version_name(address: Address) -> str:
    """The resource name of an address's version."""
    return f"{address.dataset_name}/versions/{address.version or HEAD}"


def is_resource_name(text: str) -> bool:
    """Whether `text` is `tenants/{t}/datasets/{d}...` rather than an address."""
    parts = text.split("/")
    return len(parts) >= 4 and parts[0] == "tenants" and parts[2] == "datasets"


def list_datasets(client: Client, tenant: str | None) -> Iterator[dataset_pb2.Dataset]:
    """A tenant's datasets, or those of all (None), in order of name.

    Raises:
        PermissionDeniedError: of all tenants, with a token of one.
    """
    parent = EVERY_TENANT if tenant is None else f"tenants/{check_part(tenant, 'tenant')}"
    request = api.ListDatasetsRequest(parent=parent, page_size=1000)
    while True:
        response = service_call(client, "ListDatasets", request)
        yield from response.datasets
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


def list_versions(client: Client, dataset: str) -> Iterator[dataset_pb2.Version]:
    """The versions of `tenant/name`, newest first."""
    request = api.ListVersionsRequest(parent=parse_address(dataset).dataset_name)
    while True:
        response = service_call(client, "ListVersions", request)
        yield from response.versions
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


def delete_dataset(client: Client, dataset: str, *, request_id: str) -> None:
    """Remove `tenant/name` with all its versions."""
    name = parse_address(dataset).dataset_name
    request = api.DeleteDatasetRequest(name=name, request_id=request_id)
    service_call(client, "DeleteDataset", request)
