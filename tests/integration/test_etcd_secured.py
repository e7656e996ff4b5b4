"""An etcd behind mTLS that asks for a user and a password, as one outside of Hyper does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from aetcd import rpc
from aetcd.rpc import rpc_pb2_grpc

from hyper.cli.main import run
from hyper.errors import FailedPreconditionError, UnavailableError
from hyper_servicekit.config import ServiceSettings, settings_config
from hyper_servicekit.etcd import Change, Etcd, Snapshot
from hyper_servicekit.etcd.login import Login
from tests.support.servers import EtcdServer, run_etcd

PASSWORD = "of the scheduler"
PREFIX = "/hyper"


class Settings(ServiceSettings):
    """As every service's."""

    model_config = settings_config("TESTED")


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    assert run(["certs", str(folder)]) == 0
    assert run(["certs", str(folder), "--client", "ada"]) == 0
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certs: Path) -> Iterator[EtcdServer]:
    options = ["--auth-token-ttl=2"]  # seconds that a token lasts
    with run_etcd(tmp_path_factory.mktemp("etcd"), options=options, certs=certs) as etcd:
        asyncio.run(ask_for_passwords(etcd.endpoint))
        yield etcd


async def ask_for_passwords(endpoint: str) -> None:
    """As `etcdctl` does: root, a user for Hyper's keys alone, `auth enable`."""
    async with grpc.aio.insecure_channel(endpoint) as channel:
        auth = rpc_pb2_grpc.AuthStub(channel)
        for name in ("root", "hyper"):
            await auth.RoleAdd(rpc.AuthRoleAddRequest(name=name))
            await auth.UserAdd(rpc.AuthUserAddRequest(name=name, password=PASSWORD))
            await auth.UserGrantRole(rpc.AuthUserGrantRoleRequest(user=name, role=name))
        permission = rpc.Permission(
            permType=rpc.Permission.READWRITE, key=PREFIX.encode(), range_end=b"/hyper0"
        )
        await auth.RoleGrantPermission(
            rpc.AuthRoleGrantPermissionRequest(name="hyper", perm=permission)
        )
        await auth.AuthEnable(rpc.AuthEnableRequest())


def settings(server: EtcdServer, certs: Path, **changes: object) -> Settings:
    tls = {name: certs / file for name, file in
           (("ca", "ca.pem"), ("cert", "ada.pem"), ("key", "ada.key"))}  # fmt: skip
    values: dict[str, object] = {
        "etcd_endpoints": [server.secure], "etcd_tls": tls, "etcd_user": "hyper",
        "etcd_password": PASSWORD,
    }  # fmt: skip
    return Settings(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
async def etcd(server: EtcdServer, certs: Path) -> AsyncIterator[Etcd]:
    async with Etcd.of(settings(server, certs)) as client:
        yield client


async def test_all_that_a_service_does(etcd: Etcd) -> None:
    lease = await etcd.grant(2.0)
    async with lease.keep():
        await etcd.put("/hyper/here", b"1", lease=lease.id)
        async with etcd.watching("/hyper/here") as events:
            first = await anext(events)
            assert isinstance(first, Snapshot) and [item.value for item in first.items] == [b"1"]
            await asyncio.sleep(3)  # longer than the lease and the token last
            await etcd.put("/hyper/here", b"2", lease=lease.id)
            change = await anext(events)
            assert isinstance(change, Change) and change.value == b"2"
    assert await etcd.get("/hyper/here") is None  # given back


async def test_a_token_that_etcd_has_forgotten_is_renewed(etcd: Etcd, server: EtcdServer) -> None:
    """Tokens are in etcd's memory: a restart loses them, and no call fails by it."""
    await etcd.put("/hyper/kept", b"1")
    async with etcd.watching("/hyper/kept") as events:
        await anext(events)
        server.kill()
        await asyncio.to_thread(server.start)
        await etcd.put("/hyper/kept", b"2")
        async with asyncio.timeout(20):
            change = await anext(events)
        assert isinstance(change, Change) and change.value == b"2"


async def test_other_keys_are_not_ours(etcd: Etcd) -> None:
    with pytest.raises(FailedPreconditionError, match="etcd_prefix"):
        await etcd.put("/others", b"1")


@pytest.mark.parametrize(("user", "password"), [("", ""), ("hyper", "wrong"), ("nobody", PASSWORD)])
async def test_strangers_are_told_which_setting_is_wrong(
    server: EtcdServer, certs: Path, user: str, password: str
) -> None:
    given = settings(server, certs, etcd_user=user, etcd_password=password)
    async with Etcd.of(given) as client:
        with pytest.raises(FailedPreconditionError, match=r"etcd_user.*etcd_password"):
            await client.get("/hyper/here")


async def test_a_password_where_nobody_asks(etcd_server: EtcdServer) -> None:
    async with Etcd([etcd_server.endpoint], login=Login("hyper", PASSWORD)) as client:
        with pytest.raises(FailedPreconditionError, match="auth enable"):
            await client.get("/hyper/here")


async def test_without_our_certificate(server: EtcdServer, certs: Path) -> None:
    for tls in (None, {"ca": certs / "ca.pem"}):
        given = settings(server, certs, etcd_tls=tls)
        async with Etcd.of(given, timeout_s=1.0) as client:
            with pytest.raises(UnavailableError):
                await client.get("/hyper/here")
