"""The matcher's process, alone and beside a real storage gateway."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hyper.client import Client
from hyper.compute_matching import match_images
from hyper.config import MATCHER
from hyper.errors import InvalidArgumentError, NotFoundError
from hyperapi.matcher.v1 import matcher_service_pb2 as api
from hyperapi.matcher.v1.matcher_service_pb2_grpc import MatcherServiceStub
from tests.support.gateway import run_gateway, storage_client
from tests.support.sections import texture
from tests.support.servers import EtcdServer, S3Server, ServerProcess


@pytest.fixture(scope="module")
def client(
    etcd_server: EtcdServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A client of a gateway and a matcher."""
    folder = tmp_path_factory.mktemp("matcher")
    prefix = f"/test-{secrets.token_hex(8)}"
    bucket = s3_server.settings(f"matcher-{secrets.token_hex(8)}")
    ready_file = folder / "ready.json"
    with (
        run_gateway(folder / "gateway", etcd_server.endpoint, bucket, prefix) as gateway,
        storage_client(gateway.address) as client,
        pytest.MonkeyPatch.context() as patch,
    ):
        settings = {
            "HYPER_MATCHER__READY_FILE": str(ready_file),
            "HYPER_MATCHER__ETCD_ENDPOINTS": json.dumps([etcd_server.endpoint]),
            "HYPER_MATCHER__ETCD_PREFIX": prefix,
            "HYPER_MATCHER__SCHEDULER_ENDPOINT": "127.0.0.1:1",
        }
        command = ["env", *(f"{name}={value}" for name, value in settings.items())]
        process = ServerProcess(
            "matcher", [*command, sys.executable, "-m", "hyper_matcher"], folder,
            folder / "matcher.log",
        )  # fmt: skip
        try:
            process.start(ready_file.exists)
            facts = json.loads(ready_file.read_text())
            patch.setenv("HYPER_MATCHER_ENDPOINT", facts["address"])
            patch.setenv("TEST_MATCHER_METRICS", facts["metrics_address"])
            yield client
        finally:
            process.stop(grace_s=10.0)


def test_inline_images_are_matched(client: Client) -> None:
    world = texture((300, 300), 1)
    found = match_images(
        client, world[:256, :256], world[7:263, 4:260], np.array([[128.0, 128.0]]), template_px=64
    )
    assert found.displacement[0] == pytest.approx([-7, -4], abs=0.1)
    assert found.rejection.tolist() == [0]


@pytest.mark.timeout(120)
def test_stored_sections_are_matched_from_a_session_and_from_a_version(client: Client) -> None:
    world = texture((420, 420), 2)
    stack = np.stack([world[2 * k : 2 * k + 400, k : k + 400] for k in range(4)])
    name = f"lab/set-{secrets.token_hex(6)}"
    with client.session(name) as session:
        array = session.create_array("features", stack.shape, "uint8", chunks=(1, 128, 128))
        array[...] = stack
        pairs = list(client.match_sections(session["features"], [(0, 1), (0, 2)], template_px=96))
    for pair, distance in zip(pairs, (1, 2), strict=True):
        ok = pair.rejection == 0
        assert (pair.source_z, pair.target_z, pair.flag) == (0, distance, "")
        expected = [-2 * distance, -distance]
        assert np.median(pair.displacement[ok], axis=0) == pytest.approx(expected, abs=0.1)
    stored = client.open_array(f"{name}/features")
    again = list(client.match_sections(stored, [(0, 1)], template_px=96))
    assert again[0].displacement == pytest.approx(pairs[0].displacement)


def test_bad_requests_come_back_as_what_they_are(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match="NaN") as refused:
        blank = np.full((100, 100), np.nan, np.float32)
        match_images(client, blank, blank, np.array([[50.0, 50.0]]), template_px=32)
    assert refused.value.field == "source"
    missing = "tenants/lab/datasets/none/versions/1/arrays/a"
    request = api.MatchSectionsRequest(pairs=[api.SectionPair(source_z=0, target_z=1)])
    request.array.name = missing
    with pytest.raises(NotFoundError):
        list(client.stream(MATCHER, MatcherServiceStub, "MatchSections", request))


def test_its_metrics_tell_what_it_did(client: Client) -> None:
    test_inline_images_are_matched(client)
    address = os.environ["TEST_MATCHER_METRICS"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert 'hyper_matcher_matches_total{outcome="accepted"}' in text
    assert 'method="Match"' in text


def test_a_wrong_setting_is_one_line_and_status_2(tmp_path: Path) -> None:
    command = ["env", "HYPER_MATCHER__THREADS=0", sys.executable, "-m", "hyper_matcher"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "HYPER_MATCHER__THREADS" in done.stderr
