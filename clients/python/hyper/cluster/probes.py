"""Asking a server on loopback whether it is up, and whether it is the one that was started."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from hyper.cluster.ports import LOOPBACK
from hyper.cluster.programs import S3Credentials, WeedPorts

_TIMEOUT_S = 2.0


def etcd_member(port: int) -> str | None:
    """The member name of the healthy etcd on `port`; None while there is none."""
    if _request(port, "GET", "/health").get("health") not in ("true", True):
        return None
    answer = _request(port, "POST", "/v3/cluster/member/list", "{}")
    members = answer.get("members")
    if not isinstance(members, list) or len(members) != 1:
        return None
    name = members[0].get("name")
    return name if isinstance(name, str) and name else None


def _request(port: int, method: str, path: str, body: str | None = None) -> dict[str, Any]:
    """A JSON answer; empty if it did not come."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=_TIMEOUT_S)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        text = response.read()
        if response.status != 200:
            return {}
        answer = json.loads(text)
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        connection.close()
    return answer if isinstance(answer, dict) else {}


def answers(address: str, path: str) -> bool:
    """Whether an HTTP GET of `path` at host:port is answered with 200."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def listens(port: int) -> bool:
    """Whether anybody accepts connections on this loopback port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(_TIMEOUT_S)
        return probe.connect_ex((LOOPBACK, port)) == 0


def make_bucket(ports: WeedPorts, credentials: S3Credentials, bucket: str) -> str | None:
    """Make sure that the bucket exists and takes an object; None if so, else why not yet.

    Only the server that was started with these credentials accepts them.
    """
    if not listens(ports.s3):
        return "nothing listens yet"
    # Imported here: administration of the embedded server needs it, no client does.
    import io

    import minio
    import urllib3

    client = minio.Minio(
        f"{LOOPBACK}:{ports.s3}",
        access_key=credentials.access_key,
        secret_key=credentials.secret_key,
        secure=False,
        region="us-east-1",
        http_client=urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(10.0)),
    )
    try:
        if not client.bucket_exists(bucket):
            client.make_bucket(bucket)
        client.put_object(bucket, ".hyper", io.BytesIO(b"hyper\n"), 6)
    except (minio.error.MinioException, urllib3.exceptions.HTTPError, OSError) as error:
        return str(error).splitlines()[0]
    return None
