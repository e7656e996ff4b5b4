"""What every object store promises; the one in memory and S3."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import urllib3

from hyper.errors import InvalidArgumentError, NotFoundError, UnavailableError
from hyper_servicekit.config import S3Settings
from hyper_servicekit.objects import MemoryStore, ObjectStore, S3Store, s3
from tests.support.servers import S3Server

DATA = bytes(range(256)) * 5


@pytest.fixture(params=["memory", "s3"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[ObjectStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    async with S3Store(request.getfixturevalue("s3_settings")) as made:
        yield made


async def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return sorted([info.key async for info in store.list(prefix)])


async def test_put_get_replace_delete(store: ObjectStore) -> None:
    await store.put("a/b.bin", DATA)
    assert await store.get("a/b.bin") == DATA
    await store.put("a/b.bin", b"")
    assert await store.get("a/b.bin") == b""
    await store.delete("a/b.bin")
    await store.delete("a/b.bin")
    with pytest.raises(NotFoundError, match=r"a/b\.bin"):
        await store.get("a/b.bin")


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 10), (None, 10), (10, None), (1270, 5000), (1279, 1280), (5, 5), (7, 3), (0, 0)],
)
async def test_ranges_are_slices(store: ObjectStore, start: int | None, stop: int | None) -> None:
    await store.put("ranged", DATA)
    assert await store.get("ranged", start, stop) == DATA[start:stop]


@pytest.mark.parametrize("start", [1280, 5000])
async def test_a_range_behind_the_end_is_empty(store: ObjectStore, start: int) -> None:
    await store.put("ranged", DATA)
    assert await store.get("ranged", start) == b""
    assert await store.get("ranged", start, start + 10) == b""


async def test_ranges_of_nothing(store: ObjectStore) -> None:
    for start, stop in ((0, 5), (5, 5), (None, None)):
        with pytest.raises(NotFoundError):
            await store.get("missing", start, stop)
    with pytest.raises(ValueError, match="range"):
        await store.get("missing", -1)
    with pytest.raises(ValueError, match="range"):
        await store.get("missing", 0, -1)


async def test_a_file_is_put_from_where_it_stands(store: ObjectStore) -> None:
    file = io.BytesIO(b"0123456789")
    file.seek(3)
    await store.put_file("a", file, 4)
    assert await store.get("a") == b"3456"


async def test_head(store: ObjectStore) -> None:
    assert await store.head("x") is None
    await store.put("x", DATA)
    info = await store.head("x")
    assert info is not None
    assert (info.key, info.size) == ("x", len(DATA))
    assert abs(info.modified - datetime.now(UTC)) < timedelta(minutes=5)


async def test_list_by_prefix(store: ObjectStore) -> None:
    names = ["a/1", "a/2/deep", "a-b", "ab", "b/1"]
    for name in reversed(names):
        await store.put(name, name.encode())
    assert await keys(store) == sorted(names)
    assert await keys(store, "a/") == ["a/1", "a/2/deep"]
    assert await keys(store, "a") == sorted(names[:4])
    assert await keys(store, "none/") == []
    assert {info.key: info.size async for info in store.list("a/")} == {"a/1": 3, "a/2/deep": 8}


@pytest.mark.parametrize(
    "key", ["name with spaces", "ünï/cødé", "per%20cent+plus", "q?a=b&c#d", "tilde~(1)'!*"]
)
async def test_odd_but_legal_keys(store: ObjectStore, key: str) -> None:
    await store.put(key, b"data")
    assert await store.get(key) == b"data"
    assert await keys(store) == [key]
    assert await store.head(key) is not None
    await store.delete(key)
    assert await keys(store) == []


@pytest.mark.parametrize(
    "key", ["", "/a", "a//b", "a/", "../a", "a/../b", "a\nb", "a\\b", "x" * 2000]
)
async def test_illegal_keys_are_refused_everywhere(store: ObjectStore, key: str) -> None:
    for call in (
        store.get(key), store.put(key, b""), store.delete(key), store.head(key)
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError) as caught:
            await call
        assert caught.value.reason == "INVALID_NAME"
    with pytest.raises(InvalidArgumentError):
        store.sign(key, "GET", 60)


async def test_a_signature_of_another_kind_is_refused(store: ObjectStore) -> None:
    with pytest.raises(ValueError, match="DELETE"):
        store.sign("a", "DELETE", 60)


async def test_many_at_once(store: ObjectStore) -> None:
    names = [f"n/{i:03}" for i in range(60)]
    await asyncio.gather(*(store.put(name, name.encode()) for name in names))
    assert await asyncio.gather(*map(store.get, names)) == [name.encode() for name in names]
    assert await keys(store, "n/") == names


async def test_a_list_longer_than_a_page(store: ObjectStore) -> None:
    names = [f"p{'/' if i % 3 else '-'}{i:04}" for i in range(1100)]
    await asyncio.gather(*(store.put(name, b"") for name in names))
    assert await keys(store, "p") == sorted(names)


async def test_a_large_object(store: ObjectStore) -> None:
    data = DATA * (12_000_000 // len(DATA))
    await store.put("large", data)
    info = await store.head("large")
    assert info is not None
    assert info.size == len(data)
    assert await store.get("large", 11_000_000, 11_000_100) == data[11_000_000:11_000_100]
    assert await store.get("large") == data


class TestS3:
    async def test_a_large_file_goes_in_parts_and_is_there_when_all_is(
        self, s3_settings: S3Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(s3, "_LARGEST_PUT_BYTES", 6 << 20)
        monkeypatch.setattr(s3, "_PART_BYTES", 5 << 20)
        data = DATA * ((13 << 20) // len(DATA))
        async with S3Store(s3_settings) as store:
            with pytest.raises(UnavailableError):
                await store.put_file("cut", io.BytesIO(data[: 7 << 20]), len(data))
            assert await store.head("cut") is None
            await store.put_file("large", io.BytesIO(data + b"not of it"), len(data))
            info = await store.head("large")
            assert info is not None and info.size == len(data)
            assert (
                await store.get("large", (10 << 20) - 3, (10 << 20) + 5)
                == (data[(10 << 20) - 3 : (10 << 20) + 5])
            )

    async def test_signed_urls_allow_one_method_on_one_object(
        self, s3_settings: S3Settings
    ) -> None:
        async with S3Store(s3_settings) as store:
            await store.put("other", b"other")
            put = store.sign("dir/a b", "PUT", 60)
            get = store.sign("dir/a b", "GET", 60)

            def use() -> None:
                with urllib3.PoolManager() as http:
                    assert http.request("PUT", put, body=DATA).status == 200
                    answer = http.request("GET", get, headers={"Range": "bytes=2-4"})
                    assert (answer.status, answer.data) == (206, DATA[2:5])
                    assert http.request("PUT", get, body=b"x").status == 403
                    assert http.request("GET", get.replace("a%20b", "other")).status == 403
                    assert http.request("GET", get.split("?")[0]).status == 403

            await asyncio.to_thread(use)
            assert await store.get("dir/a b") == DATA

    async def test_signed_urls_name_the_public_endpoint(self, s3_settings: S3Settings) -> None:
        settings = s3_settings.model_copy(update={"public_endpoint": "https://s3.example.org"})
        async with S3Store(settings) as store:
            url = store.sign("a", "GET", 60)
        assert url.startswith(f"https://s3.example.org/{settings.bucket}/{settings.prefix}/a?X-Amz")

    async def test_signed_urls_can_name_the_servers_address(self, s3_settings: S3Settings) -> None:
        public = s3_settings.endpoint.replace("127.0.0.1", "localhost")
        settings = s3_settings.model_copy(
            update={"public_endpoint": public, "public_by_address": True}
        )
        async with S3Store(settings) as store:
            assert store.sign("a", "GET", 60).startswith(f"{s3_settings.endpoint}/")

    async def test_prefixes_keep_stores_apart(self, s3_settings: S3Settings) -> None:
        inner = s3_settings.model_copy(update={"prefix": f"{s3_settings.prefix}/inner"})
        async with S3Store(s3_settings) as outer, S3Store(inner) as store:
            await store.put("a", b"1")
            assert await keys(store) == ["a"]
            assert await keys(outer) == ["inner/a"]

    async def test_unreachable_is_named_and_in_time(self, s3_settings: S3Settings) -> None:
        dead = s3_settings.model_copy(update={"endpoint": "http://127.0.0.1:1"})
        async with S3Store(dead) as store, asyncio.timeout(10):
            with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:1") as caught:
                await store.get("a")
            assert caught.value.reason == "S3_UNREACHABLE"
            assert caught.value.exit_code == 2

    async def test_wrong_credentials_and_bucket_are_said(
        self, s3_server: S3Server, s3_settings: S3Settings
    ) -> None:
        wrong = s3_server.settings("p").model_copy(update={"access_key": "nobody"})
        async with S3Store(wrong) as store:
            with pytest.raises(UnavailableError, match="credentials"):
                await store.put("a", b"")
            assert "secret" not in repr(wrong.secret_key) or "**" in repr(wrong.secret_key)
        absent = s3_settings.model_copy(update={"bucket": "absent-bucket"})
        async with S3Store(absent) as store:
            with pytest.raises(UnavailableError, match="absent-bucket"):
                await store.get("a")

    async def test_ensure_bucket_twice(self, s3_settings: S3Settings) -> None:
        async with S3Store(s3_settings) as store:
            await store.ensure_bucket()
            await store.ensure_bucket()
        async with S3Store(s3_settings.model_copy(update={"create_bucket": True})) as store:
            await store.put("a", b"1")

    async def test_failures_of_the_server_are_told_from_silence(
        self, s3_settings: S3Settings
    ) -> None:
        body = b"<Error><Code>InternalError</Code><Message>no space left</Message></Error>"
        requests: list[str] = []

        class Full(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                requests.append(self.path)
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(500)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Quiet."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Full) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            endpoint = f"http://127.0.0.1:{server.server_port}"
            failing = s3_settings.model_copy(update={"endpoint": endpoint})
            try:
                async with S3Store(failing) as store:
                    with pytest.raises(UnavailableError, match=r"no space left.*full disk"):
                        await store.put("a", b"data")
            finally:
                server.shutdown()
                thread.join()
        assert 1 < len(requests) < 6
