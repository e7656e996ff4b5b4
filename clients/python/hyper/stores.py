"""Stores of others: buckets in which arrays lie that are registered here without a copy."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hyper._s3 import array_call
from hyper.names import check_part
from hyperapi.storage.v1 import array_service_pb2 as api

if TYPE_CHECKING:
    from hyper.client import Client

GCS_ENDPOINT = "https://storage.googleapis.com"  # its S3-compatible XML API


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What is known of a store; its secret is not."""

    name: str
    endpoint: str
    bucket: str
    region: str
    access_key: str


def set_store(
    client: Client,
    name: str,
    *,
    endpoint: str,
    bucket: str,
    region: str = "us-east-1",
    access_key: str = "",
    secret_key: str = "",
) -> StoreInfo:
    """Name a bucket of S3, or of GCS (`GCS_ENDPOINT`, HMAC keys), for `session.register_array`.

    Args:
        client: its tenant gets the store.
        name: that it gets here.
        endpoint: http(s)://host[:port].
        bucket: in which the arrays lie.
        region: part of what is signed.
        access_key: "" for objects that are public.
        secret_key: kept encrypted, and never shown again.
    """
    store = api.ExternalStore(
        name=_name(client, name), endpoint=endpoint, bucket=bucket, region=region,
        access_key=access_key, secret_key=secret_key,
    )  # fmt: skip
    request = api.SetStoreRequest(store=store, request_id=str(uuid.uuid4()))
    return _info(array_call(client, "SetStore", request).store)


def list_stores(client: Client) -> Iterator[StoreInfo]:
    """The tenant's stores, in order of name."""
    request = api.ListStoresRequest(parent=f"tenants/{client.tenant}")
    while True:
        response = array_call(client, "ListStores", request)
        yield from map(_info, response.stores)
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


def delete_store(client: Client, name: str) -> None:
    """Forget a store; arrays that were registered from it cannot be read any more."""
    request = api.DeleteStoreRequest(name=_name(client, name), request_id=str(uuid.uuid4()))
    array_call(client, "DeleteStore", request)


def _name(client: Client, name: str) -> str:
    return f"tenants/{client.tenant}/stores/{check_part(name, 'store')}"


def _info(store: api.ExternalStore) -> StoreInfo:
    return StoreInfo(
        store.name.rpartition("/")[2], store.endpoint, store.bucket, store.region, store.access_key
    )
