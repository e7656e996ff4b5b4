"""S3 servers differ: what each does is reported, and nothing depends on it."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import urllib3
from pydantic import SecretStr

from hyper.history import collect_garbage
from hyper_servicekit.config import S3Settings
from hyper_servicekit.objects import S3Store
from hyper_storage.probe import Answer, ProbeError, probe
from tests.support.careless_s3 import BUCKET, careless_s3
from tests.support.gateway import run_gateway, storage_client
from tests.support.servers import EtcdServer


def test_seaweed_is_asked_and_nothing_is_left(s3_settings: S3Settings) -> None:
    found = probe(s3_settings)
    assert found["range"] is found["etag_is_md5"] is Answer.HONOURED
    assert found["content_md5"] is Answer.HONOURED
    assert found["if_none_match"] in Answer
    assert found["checksum_crc32c"] in Answer

    async def left() -> list[str]:
        async with S3Store(s3_settings) as store:
            return [info.key async for info in store.list()]

    assert asyncio.run(left()) == []


def test_a_bucket_that_refuses_everything_is_no_answer(s3_settings: S3Settings) -> None:
    stranger = s3_settings.model_copy(update={"secret_key": SecretStr("wrong")})
    with pytest.raises(ProbeError, match="PUT: HTTP 403"):
        probe(stranger)


def test_all_works_where_nothing_is_honoured(etcd_server: EtcdServer, tmp_path: Path) -> None:
    name, prefix = "lab/set", f"/test-{secrets.token_hex(8)}"
    eager = {"HYPER_STORAGE__GC_GRACE_MIN_S": "0", "HYPER_STORAGE__ROOT_ENTRIES": "2"}
    with careless_s3() as url:
        s3 = S3Settings(endpoint=url, bucket=BUCKET, access_key="a", secret_key=SecretStr("s"))
        assert set(probe(s3).values()) == {Answer.IGNORED}
        with (
            run_gateway(tmp_path / "g", etcd_server.endpoint, s3, prefix, eager) as gateway,
            storage_client(gateway.address) as client,
        ):
            sessions = [client.session(name) for _ in range(4)]
            for number, session in enumerate(sessions):
                session.write_many((f"{number}/{i}", bytes([number, i])) for i in range(3))
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda session: session.commit(), sessions))
            with client.session(name) as session:
                session.delete("0/0")
                session.create_array("a", (8, 8), "uint8", chunks=(4, 4))[...] = 4
            list(collect_garbage(client, apply=True, grace_s=0))
            dataset = client.open_dataset(name)
            found = {info.path: data for info, data in dataset.read_many(dataset.files())}
            whole = {f"{n}/{i}": bytes([n, i]) for n in range(4) for i in range(3)}
            del whole["0/0"]
            assert found == whole
            assert client.open_array(f"{name}/a")[3:5, 3:5].tolist() == [[4, 4], [4, 4]]
            assert _reported(gateway.ready_file) == dict.fromkeys(probe(s3), 0.0)


def _reported(ready_file: Path) -> dict[str, float]:
    """What a gateway's metrics say of its S3, once it has asked."""
    address = json.loads(ready_file.read_text())["metrics_address"]
    deadline = time.monotonic() + 20
    while True:
        text = urllib3.request("GET", f"http://{address}/metrics").data.decode()
        lines = [line for line in text.splitlines() if line.startswith("hyper_storage_s3_honours{")]
        if lines or time.monotonic() > deadline:
            return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in lines}
        time.sleep(0.05)
