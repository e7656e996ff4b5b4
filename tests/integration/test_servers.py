"""The servers of the tests themselves: ours, alive again after SIGKILL, with their data."""

from __future__ import annotations

import io
from pathlib import Path

import minio
import pytest

from hyper.cluster import probes
from hyper.cluster.programs import S3Credentials
from hyper_servicekit.config import S3Settings
from tests.support.servers import EtcdServer, S3Server, run_etcd


def test_etcd_answers_with_its_own_name(etcd_server: EtcdServer) -> None:
    assert probes.etcd_member(etcd_server.port) == etcd_server.name


def test_etcd_is_back_after_sigkill(tmp_path: Path) -> None:
    with run_etcd(tmp_path) as server:
        server.kill()
        assert probes.etcd_member(server.port) is None
        server.start()
        assert probes.etcd_member(server.port) == server.name


def test_s3_takes_only_its_own_credentials(s3_server: S3Server) -> None:
    stranger = S3Credentials("somebody", "else")
    assert probes.make_bucket(s3_server.ports, stranger, s3_server.bucket) is not None


def test_anonymous_requests_are_refused(s3_server: S3Server) -> None:
    host = s3_server.endpoint.removeprefix("http://")
    anonymous = minio.Minio(host, secure=False, region="us-east-1")
    with pytest.raises(minio.error.S3Error):
        anonymous.get_object(s3_server.bucket, ".hyper")


def test_objects_survive_sigkill(s3_server: S3Server, s3_settings: S3Settings) -> None:
    host = s3_server.endpoint.removeprefix("http://")
    client = minio.Minio(
        host, s3_server.access_key, s3_server.secret_key, secure=False, region="us-east-1"
    )
    key = f"{s3_settings.prefix}/object"
    client.put_object(s3_server.bucket, key, io.BytesIO(b"kept"), 4)
    s3_server.kill()
    s3_server.start()
    response = client.get_object(s3_server.bucket, key)
    try:
        assert response.read() == b"kept"
    finally:
        response.close()
        response.release_conn()
