"""Tokens that tasks call services with: good for the tenant whose tasks they are, and no other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from hyper_servicekit.tokens import TASK, Signer

_RENEW = 1 / 7  # of its life: then the next spec brings a newer one


class TaskTokens:
    """Signs and remembers one token a tenant.

    Args:
        keys: of the cluster's tokens, by their ids: the first signs. Without any, no token is made.
        lifetime_s: of a token; a task that runs for longer is refused afterwards.
        now: Unix time.
    """

    def __init__(
        self, keys: Mapping[str, str], lifetime_s: float, now: Callable[[], float] = time.time
    ) -> None:
        self._signer = next((Signer(key_id, key) for key_id, key in keys.items()), None)
        self._lifetime_s, self._now = lifetime_s, now
        self._known: dict[str, tuple[str, float]] = {}

    def of(self, tenant: str) -> str:
        """The tenant's token; "" where the cluster asks for none."""
        if self._signer is None:
            return ""
        now = self._now()
        token, until = self._known.get(tenant, ("", 0.0))
        if now >= until:
            expires_s = now + self._lifetime_s
            token = self._signer.sign(tenant, subject=TASK, expires_s=expires_s)
            self._known[tenant] = token, now + self._lifetime_s * _RENEW
        return token
