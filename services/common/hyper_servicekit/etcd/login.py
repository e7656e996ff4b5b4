"""Who we are to an etcd that asks: a token for a name and a password, taken again when refused."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from aetcd import rpc
from aetcd.rpc import rpc_pb2_grpc

Metadata = tuple[tuple[str, str], ...]

# What etcd says of a token that is no good any more: it has expired, or etcd has been restarted, or
# users have been changed since. The call has not been carried out.
_REFUSED = ("invalid auth token", "revision of auth store is old")


class Login:
    """A user of etcd.

    Args:
        user: its name; "": nobody asks, and nothing is shown.
        password: its password.
    """

    def __init__(self, user: str = "", password: str = "") -> None:
        self._user, self._password = user, password
        self._shown: Metadata = ()
        self._lock = asyncio.Lock()

    async def metadata(self, channel: grpc.aio.Channel, timeout_s: float) -> Metadata:
        """What a call shows.

        Raises:
            grpc.aio.AioRpcError: etcd cannot be reached, or does not know us.
        """
        if not self._user:
            return ()
        async with self._lock:
            if not self._shown:
                request = rpc.AuthenticateRequest(name=self._user, password=self._password)
                answer = await rpc_pb2_grpc.AuthStub(channel).Authenticate(
                    request, timeout=timeout_s, wait_for_ready=True
                )
                self._shown = (("token", answer.token),)
            return self._shown

    def forget(self, shown: Metadata) -> None:
        """That was refused: the next call asks for another token."""
        if self._shown == shown:
            self._shown = ()

    def was_refused(self, error: Any, shown: Metadata) -> bool:
        """Whether a call failed because of its token alone; then that is forgotten."""
        if not shown or not any(text in (error.details() or "") for text in _REFUSED):
            return False
        self.forget(shown)
        return True
