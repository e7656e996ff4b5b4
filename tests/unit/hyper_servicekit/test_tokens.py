"""Tokens: good ones are read, anything else is refused without an echo; requests are judged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from hyper_servicekit.authorize import Authorizer
from hyper_servicekit.tokens import ANY_TENANT, Claims, Signer, Verifier
from hyperapi.scheduler.v1 import cluster_service_pb2, workflow_service_pb2
from hyperapi.storage.v1 import dataset_pb2, dataset_service_pb2, history_service_pb2
from hyperapi.worker.v1 import agent_service_pb2

KEY = "k" * 32
NOW = 1_000_000.0
GOOD = Signer("k1", KEY).sign("lab", subject="me", expires_s=NOW + 60)


def test_a_good_token_is_read() -> None:
    claims = Verifier({"k0": "x" * 32, "k1": KEY}).read(GOOD, NOW)
    assert (claims.tenant, claims.subject, claims.expires_s) == ("lab", "me", NOW + 60)
    assert claims.may_use("lab")
    assert not claims.may_use("lab2")


@given(st.integers(0, len(GOOD) - 1), st.characters())
def test_a_changed_token_is_refused(at: int, letter: str) -> None:
    changed = GOOD[:at] + letter + GOOD[at + 1 :]
    if changed == GOOD:
        return
    with pytest.raises(UnauthenticatedError):
        Verifier({"k1": KEY}).read(changed, NOW)


@given(st.text(max_size=300))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        Verifier({"k1": KEY}).read(text, NOW)
    assert len(text) < 8 or text not in str(caught.value)


def test_old_tokens_other_keys_and_no_keys_are_refused() -> None:
    for verifier, now in (
        (Verifier({"k1": KEY}), NOW + 120),
        (Verifier({"k1": "y" * 32}), NOW),
        (Verifier({}), NOW),
    ):
        with pytest.raises(UnauthenticatedError):
            verifier.read(GOOD, now)


def test_what_cannot_be_signed_is_said() -> None:
    with pytest.raises(ValueError, match="bytes"):
        Signer("k1", "short")
    with pytest.raises(InvalidArgumentError):
        Signer("k1", KEY).sign("../x", subject="", expires_s=NOW)


LAB = Claims("lab", "", NOW, "1")


@pytest.mark.parametrize(
    ("method", "request_", "good"),
    [
        ("GetVersion", dataset_service_pb2.GetVersionRequest(name="tenants/lab/datasets/a"), True),
        ("GetVersion", dataset_service_pb2.GetVersionRequest(name="tenants/bo/datasets/a"), False),
        ("GetVersion", dataset_service_pb2.GetVersionRequest(name="lab/a"), False),
        ("GetVersion", dataset_service_pb2.GetVersionRequest(), False),
        ("GetCluster", cluster_service_pb2.GetClusterRequest(), True),
        ("DrainWorker", workflow_service_pb2.DrainWorkerRequest(name="workers/w"), False),
        ("AddFiles", dataset_service_pb2.AddFilesRequest(
            session="tenants/lab/datasets/a/sessions/s",
            files=[dataset_pb2.File(path="tenants/bob/notes.txt")]), True),
        ("SetTag", history_service_pb2.SetTagRequest(
            tag=history_service_pb2.Tag(name="tenants/bob/datasets/a/tags/t")), False),
        ("DiffVersions", history_service_pb2.DiffVersionsRequest(
            base="tenants/lab/datasets/a/versions/1",
            target="tenants/bob/datasets/a/versions/1"), False),
        ("CollectGarbage", history_service_pb2.CollectGarbageRequest(), False),
        ("Connect", agent_service_pb2.ConnectRequest(hello={"worker": "w"}), False),
    ],
    ids=map(str, range(11)),
)  # fmt: skip
def test_requests_are_judged_by_their_names(method: str, request_: object, good: bool) -> None:
    authorizer = Authorizer({"k1": KEY})
    authorizer.check(Claims(ANY_TENANT, "", NOW, "1"), method, request_)  # type: ignore[arg-type]
    if good:
        authorizer.check(LAB, method, request_)  # type: ignore[arg-type]
    else:
        with pytest.raises(PermissionDeniedError):
            authorizer.check(LAB, method, request_)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [{}, {"authorization": GOOD}, {"authorization": b"Bearer x"}])
def test_a_call_without_a_bearer_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(UnauthenticatedError):
        Authorizer({"k1": KEY}).caller(given)
