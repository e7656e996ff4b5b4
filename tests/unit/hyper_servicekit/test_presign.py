"""Our signatures against the `minio` client's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minio import Minio

from hyper_servicekit.objects.presign import Presigner

WHEN = datetime(2031, 5, 6, 23, 59, 58, tzinfo=UTC)
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(
    lambda name: (
        not name.startswith("/")
        and "//" not in name
        and not {".", ".."} & set(name.split("/"))
        and name.strip()  # minio, the reference, refuses a name of spaces
    )
)


def reference(endpoint: str, method: str, name: str, expires_s: int, now: datetime) -> str:
    scheme, _, host = endpoint.partition("://")
    client = Minio(
        endpoint=host, access_key="AK/+id", secret_key="s3cr3t", secure=scheme == "https",
        region="eu-west-9",
    )  # fmt: skip
    return client.get_presigned_url(
        method=method, bucket_name="bucket", object_name=name,
        expires=timedelta(seconds=expires_s), request_date=now,
    )  # fmt: skip


def ours(endpoint: str, method: str, name: str, expires_s: int, now: datetime) -> str:
    return Presigner(endpoint, "bucket", "eu-west-9", "AK/+id", "s3cr3t").sign(
        method, name, expires_s, now
    )


@given(NAMES, st.sampled_from(["GET", "PUT", "HEAD"]), st.integers(1, 900), st.datetimes())
def test_any_object(name: str, method: str, expires_s: int, now: datetime) -> None:
    arguments = ("http://127.0.0.1:9000", method, name, expires_s, now.replace(tzinfo=UTC))
    assert ours(*arguments) == reference(*arguments)


@pytest.mark.parametrize(
    "endpoint", ["https://s3.example.org", "http://host:80", "https://host:443", "http://host:443"]
)
def test_any_endpoint(endpoint: str) -> None:
    arguments = (endpoint, "GET", "a/b", 60, WHEN)
    assert ours(*arguments) == reference(*arguments)


def test_the_key_changes_with_the_day() -> None:
    signer = Presigner("http://h:1", "bucket", "eu-west-9", "AK/+id", "s3cr3t")
    for now in (WHEN, WHEN + timedelta(seconds=3), WHEN):
        expected = reference("http://h:1", "GET", "a", 60, now)
        assert signer.sign("GET", "a", 60, now) == expected


def test_other_time_zones_mean_the_same_moment() -> None:
    elsewhere = WHEN.astimezone(timezone(timedelta(hours=5)))
    assert ours("http://h:1", "GET", "a", 60, elsewhere) == ours("http://h:1", "GET", "a", 60, WHEN)


def test_headers_are_signed_too() -> None:
    signer = Presigner("http://h:1", "bucket", "eu-west-9", "AK/+id", "s3cr3t")
    plain = signer.sign("PUT", "a", 60, WHEN)
    signed = signer.sign("PUT", "a", 60, WHEN, {"x-amz-checksum-crc32c": "AAAAAA=="})
    assert "X-Amz-SignedHeaders=host&" in plain
    assert "X-Amz-SignedHeaders=host%3Bx-amz-checksum-crc32c&" in signed
    assert plain.rpartition("=")[2] != signed.rpartition("=")[2]
