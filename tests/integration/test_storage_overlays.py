"""Arrays edited, published and registered, against real servers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import numpy as np
import obstore.store
import pytest
import tensorstore
import zarr
import zarr.storage

from hyper import stores
from hyper.client import Client
from hyper.config import STORAGE
from hyper.errors import ConflictError, InvalidArgumentError, NotFoundError
from hyper.history import collect_garbage
from hyper.publish import list_shards, publish
from hyper_servicekit.config import S3Settings
from hyperapi.storage.v1 import dataset_service_pb2 as api
from hyperapi.storage.v1.dataset_service_pb2_grpc import DatasetServiceStub
from tests.support.gateway import Gateway, run_gateway, storage_client
from tests.support.servers import EtcdServer, S3Server


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> S3Settings:
    return s3_server.settings(f"overlays-{secrets.token_hex(8)}")


@pytest.fixture(scope="module")
def gateway(
    etcd_server: EtcdServer, bucket: S3Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    prefix = f"/test-{secrets.token_hex(8)}"
    extra = {"HYPER_STORAGE__GC_GRACE_MIN_S": "0"}
    with run_gateway(folder, etcd_server.endpoint, bucket, prefix, extra) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[Client]:
    with storage_client(gateway.address) as client:
        yield client


@pytest.fixture
def name() -> str:
    return f"default/set-{secrets.token_hex(6)}"


def s3_store(settings: S3Settings, prefix: str) -> obstore.store.S3Store:
    return obstore.store.S3Store(
        settings.bucket,
        prefix=prefix,
        endpoint=settings.endpoint,
        access_key_id=settings.access_key,
        secret_access_key=settings.secret_key.get_secret_value(),
        region=settings.region,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def open_tensorstore(settings: S3Settings, path: str, driver: str, **spec: object) -> np.ndarray:
    """What TensorStore reads at `path` of the bucket."""
    kvstore = {
        "driver": "s3", "bucket": settings.bucket, "path": path, "endpoint": settings.endpoint,
        "aws_region": settings.region, "aws_credentials": {"type": "environment"},
    }  # fmt: skip
    opened = tensorstore.open({"driver": driver, "kvstore": kvstore, **spec}).result()
    return np.asarray(opened.read().result())


@pytest.fixture
def aws(bucket: S3Settings, monkeypatch: pytest.MonkeyPatch) -> S3Settings:
    """The bucket's credentials where TensorStore looks for them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", bucket.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", bucket.secret_key.get_secret_value())
    return bucket


def make(client: Client, name: str, data: np.ndarray, **options: object) -> None:
    with client.session(name) as session:
        array = session.create_array("a", data.shape, data.dtype, **options)  # type: ignore[arg-type]
        array[...] = data


DATA = np.random.default_rng(0).integers(0, 60000, (40, 48, 33)).astype(np.uint16)
LAYOUT = {"chunks": (10, 8, 11), "shards": (20, 24, 33)}


def test_edits_lie_over_the_base_and_appear_at_once(client: Client, name: str) -> None:
    make(client, name, DATA, **LAYOUT)
    expected = DATA.copy()
    session = client.session(name)
    array = session.edit_array("a")
    array[3:7, 1:4] = 7
    expected[3:7, 1:4] = 7
    np.testing.assert_array_equal(array[...], expected)
    np.testing.assert_array_equal(client.open_array(f"{name}/a")[...], DATA)
    np.testing.assert_array_equal(client.attach(session.name)["a"][...], expected)
    session.commit()
    newest = client.open_array(f"{name}/a")
    np.testing.assert_array_equal(newest[...], expected)
    assert newest.url == ""
    np.testing.assert_array_equal(client.open_array(f"{name}@1/a")[...], DATA)
    assert len(list(list_shards(client, newest))) == 4
    with client.session(name) as session:  # edits of edits
        again = session.edit_array("a")
        again[39, 47, :] = 1
        again.resize((41, 48, 33))
        again[40] = 5
    expected[39, 47, :] = 1
    expected = np.concatenate([expected, np.full((1, 48, 33), 5, np.uint16)])
    np.testing.assert_array_equal(client.open_array(f"{name}/a")[...], expected)


def test_edits_of_other_shards_are_rebased_and_of_the_same_refused(
    client: Client, name: str
) -> None:
    make(client, name, DATA, **LAYOUT)
    first, second, third = (client.session(name) for _ in range(3))
    first.edit_array("a")[0, 0, 0] = 1
    second.edit_array("a")[39, 0, 0] = 2
    third.edit_array("a")[1, 1, 1] = 3
    first.commit()
    second.commit()
    expected = DATA.copy()
    expected[0, 0, 0], expected[39, 0, 0] = 1, 2
    np.testing.assert_array_equal(client.open_array(f"{name}/a")[...], expected)
    with pytest.raises(ConflictError, match="'a'"):
        third.commit()
    third.abort()
    np.testing.assert_array_equal(client.open_array(f"{name}/a")[...], expected)


def test_what_cannot_be_edited_is_said(client: Client, name: str) -> None:
    make(client, name, DATA, **LAYOUT)
    with client.session(name) as session:
        with pytest.raises(NotFoundError):
            session.edit_array("b")
        session.edit_array("a")
        with pytest.raises(Exception, match="writes 'a' already"):
            session.edit_array("a")
    assert client.open_array(f"{name}/a").url  # nothing was written: it is what it was
    with pytest.raises(InvalidArgumentError, match="edit it in a session"):
        client.open_array(f"{name}/a")[0] = 1


def test_garbage_collection_keeps_what_edits_need(client: Client, name: str) -> None:
    make(client, name, DATA, **LAYOUT)
    with client.session(name) as session:
        session.edit_array("a")[0, 0, 0] = 1
    expected = DATA.copy()
    expected[0, 0, 0] = 1
    *_, totals = collect_garbage(client, apply=True, grace_s=0)
    assert totals.applied
    np.testing.assert_array_equal(client.open_array(f"{name}/a")[...], expected)


def test_published_arrays_open_everywhere(client: Client, name: str, aws: S3Settings) -> None:
    make(client, name, DATA, voxel_size_nm=(40, 4, 4), attributes={"stain": "OsO4"}, **LAYOUT)
    with client.session(name) as session:
        session.edit_array("a")[3:7, 1:4] = 7
    with client.session(name) as session:
        publish(session, client.open_array(f"{name}/a"), "a")
    expected = DATA.copy()
    expected[3:7, 1:4] = 7
    published = client.open_array(f"{name}/a")
    np.testing.assert_array_equal(published[...], expected)
    prefix = published.url.removeprefix(f"s3://{aws.bucket}/")
    opened = zarr.open_array(zarr.storage.ObjectStore(s3_store(aws, prefix)), mode="r")
    np.testing.assert_array_equal(opened[...], expected)
    assert opened.attrs["stain"] == "OsO4"
    np.testing.assert_array_equal(open_tensorstore(aws, f"{prefix}/", "zarr3"), expected)
    with (
        pytest.raises(InvalidArgumentError, match="plain Zarr already"),
        client.session(name) as session,
    ):
        publish(session, published, "a")


def _foreign(driver: str, settings: S3Settings, path: str, **spec: object) -> None:
    """Have TensorStore write an array of another format."""
    kvstore = {
        "driver": "s3", "bucket": settings.bucket, "path": path, "endpoint": settings.endpoint,
        "aws_region": settings.region, "aws_credentials": {"type": "environment"},
    }  # fmt: skip
    opened = tensorstore.open(
        {"driver": driver, "kvstore": kvstore, "create": True, **spec}
    ).result()
    turned = DATA.T[..., None] if driver == "neuroglancer_precomputed" else DATA
    opened.write(DATA.T if driver == "n5" else turned).result()


FOREIGN = {
    "zarr3": {
        "metadata": {
            "shape": DATA.shape, "data_type": "uint16",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [20, 24, 33]}},
            "codecs": [{"name": "sharding_indexed", "configuration": {
                "chunk_shape": [10, 8, 11],
                "codecs": [{"name": "transpose", "configuration": {"order": [2, 0, 1]}},
                           {"name": "bytes", "configuration": {"endian": "big"}},
                           {"name": "gzip", "configuration": {"level": 1}}],
                "index_codecs": [{"name": "bytes"}, {"name": "crc32c"}],
                "index_location": "start"}}],
        }
    },
    "zarr": {
        "metadata": {
            "shape": DATA.shape, "dtype": ">u2", "chunks": [16, 16, 16], "order": "F",
            "dimension_separator": "/",
            "compressor": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1},
        }
    },
    "n5": {
        "metadata": {
            "dimensions": DATA.shape[::-1], "blockSize": [16, 16, 16], "dataType": "uint16",
            "compression": {"type": "gzip"}, "resolution": [4, 4, 40],
            "units": ["nm", "nm", "nm"],
        }
    },
    "neuroglancer_precomputed": {
        "multiscale_metadata": {"type": "image", "data_type": "uint16", "num_channels": 1},
        "scale_metadata": {
            "size": DATA.shape[::-1], "resolution": [4, 4, 40], "encoding": "raw",
            "chunk_size": [16, 16, 16], "voxel_offset": [10, 0, 5],
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("driver", list(FOREIGN))
def test_registered_arrays_are_read_where_they_are(
    client: Client, name: str, aws: S3Settings, driver: str
) -> None:
    path = f"elsewhere/{secrets.token_hex(4)}/volume"
    _foreign(driver, aws, f"{path}/", **FOREIGN[driver])
    store = stores.set_store(
        client, f"other-{driver.replace('_', '-')}", endpoint=aws.endpoint, bucket=aws.bucket,
        access_key=aws.access_key, secret_key=aws.secret_key.get_secret_value(),
    )  # fmt: skip
    with client.session(name) as session:
        array = session.register_array("raw", store.name, path)
        assert (array.shape, array.dtype) == (DATA.shape, DATA.dtype)
    array = client.open_array(f"{name}/raw")
    np.testing.assert_array_equal(array[...], DATA)
    np.testing.assert_array_equal(array[5:39:3, 7, ::-1], DATA[5:39:3, 7, ::-1])
    if driver in ("n5", "neuroglancer_precomputed"):
        assert array.voxel_size_nm == (40, 4, 4)
    with client.session(name) as session:
        publish(session, array, "copy")
    copy = client.open_array(f"{name}/copy")
    np.testing.assert_array_equal(copy[...], DATA)
    assert copy.url
    request = api.ReadObjectRequest(parent=array.name.partition("/arrays/")[0],
                                    object=f"{array.prefix}/c/0/0/0", size_bytes=100)  # fmt: skip
    parts = list(client.stream(STORAGE, DatasetServiceStub, "ReadObject", request))
    assert sum(len(part.data) for part in parts) == 100


def test_a_secret_is_never_shown_and_a_wrong_one_is_said(
    client: Client, name: str, aws: S3Settings, etcd_server: EtcdServer
) -> None:
    secret = f"secret-{secrets.token_hex(16)}"
    stores.set_store(client, "locked", endpoint=aws.endpoint, bucket=aws.bucket,
                     access_key="nobody", secret_key=secret)  # fmt: skip
    shown = {store.name: store for store in stores.list_stores(client)}
    assert shown["locked"].access_key == "nobody"
    assert secret not in repr(shown)
    with client.session(name) as session:
        with pytest.raises(InvalidArgumentError, match="refuses"):
            session.register_array("a", "locked", "x")
        with pytest.raises(NotFoundError, match="set unknown ENDPOINT BUCKET --tenant "):
            session.register_array("a", "unknown", "x")
        session.write("x", b"")
    stores.delete_store(client, "locked")
    assert "locked" not in {store.name for store in stores.list_stores(client)}


@pytest.mark.parametrize("endpoint", ["http://169.254.169.254", "file:///etc", "http://h/x", ""])
def test_endpoints_that_lead_inside_are_refused(client: Client, endpoint: str) -> None:
    with pytest.raises(InvalidArgumentError):
        stores.set_store(client, "bad", endpoint=endpoint, bucket="bucket")
