"""SecretService: proto in, proto out. Values go in and never come out here."""

from __future__ import annotations

from typing import Any

from hyper_scheduler import convert
from hyper_scheduler.paging import make_token, page_size, read_token
from hyper_scheduler.vault import SecretInfo, Vault
from hyperapi.scheduler.v1 import secret_service_pb2 as pb
from hyperapi.scheduler.v1 import workflow_pb2 as nouns

_PAGE_MAX = 1_000


class SecretServicer:
    """What people do with secrets."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    async def PutSecret(  # noqa: N802  (gRPC's name)
        self, request: pb.PutSecretRequest, context: Any
    ) -> pb.PutSecretResponse:
        """Store or replace a secret."""
        tenant, secret = convert.secret_name(request.name)
        info = await self._vault.put(tenant, secret, request.value)
        return pb.PutSecretResponse(secret=_secret(info))

    async def ListSecrets(  # noqa: N802
        self, request: pb.ListSecretsRequest, context: Any
    ) -> pb.ListSecretsResponse:
        """Names, in order."""
        found = await self._vault.list(convert.tenant(request.parent))
        after, size = read_token(request.page_token), page_size(request.page_size, _PAGE_MAX)
        rest = [each for each in found if not after or each.name > after]
        response = pb.ListSecretsResponse(secrets=map(_secret, rest[:size]))
        if len(rest) > size:
            response.next_page_token = make_token(rest[size - 1].name)
        return response

    async def DeleteSecret(  # noqa: N802
        self, request: pb.DeleteSecretRequest, context: Any
    ) -> pb.DeleteSecretResponse:
        """Forget a secret."""
        await self._vault.delete(*convert.secret_name(request.name))
        return pb.DeleteSecretResponse()


def _secret(info: SecretInfo) -> nouns.Secret:
    return nouns.Secret(name=info.name, update_time=convert.timestamp(info.update_time))
