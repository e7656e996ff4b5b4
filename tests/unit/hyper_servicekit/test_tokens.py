"""Tokens: good ones are read, anything else is refused without an echo; requests are judged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper.access import token_id
from hyper.errors import InvalidArgumentError, PermissionDeniedError, UnauthenticatedError
from hyper_servicekit.authorize import Authorizer
from hyper_servicekit.signing import new_key, public_key
from hyper_servicekit.tokens import ANY_TENANT, Claims, Role, Signer, Verifier
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


PRIVATE = new_key()


def test_a_public_key_tells_what_its_private_key_has_signed_and_signs_nothing() -> None:
    public = public_key(PRIVATE)
    assert PRIVATE.partition(":")[2] not in public and public_key(public) == public
    signed = Signer("k1", PRIVATE).sign("lab", subject="me", expires_s=NOW + 60)
    for key in (PRIVATE, public):
        verifier = Verifier({"k1": key})
        for _ in range(2):
            assert verifier.read(signed, NOW).tenant == "lab"
        with pytest.raises(UnauthenticatedError, match="expired"):  # however often it was good
            verifier.read(signed, NOW + 120)
    with pytest.raises(ValueError, match="verifies tokens, and signs none"):
        Signer("k1", public)
    forged = Signer("k1", public.partition(":")[2]).sign("lab", subject="", expires_s=NOW + 60)
    for verifier in (Verifier({"k1": public}), Verifier({"k1": public_key(new_key())})):
        for token in (forged, GOOD):
            with pytest.raises(UnauthenticatedError):
                verifier.read(token, NOW)
    assert public_key("a plain secret of old") == "a plain secret of old"


@pytest.mark.parametrize("text", ["ed25519:", "ed25519:AAAA", "ed25519-public:%%", "short"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="bytes"):
        Verifier({"k1": text})


@given(st.integers(0, 255), st.characters())
def test_a_changed_token_of_a_private_key_is_refused(at: int, letter: str) -> None:
    signed = Signer("k1", PRIVATE).sign("lab", subject="me", expires_s=NOW + 60)
    at %= len(signed)
    changed = signed[:at] + letter + signed[at + 1 :]
    if changed != signed:
        with pytest.raises(UnauthenticatedError):
            Verifier({"k1": public_key(PRIVATE)}).read(changed, NOW)


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
    operator = Claims(ANY_TENANT, "", NOW, "1", Role.ADMIN)
    authorizer.check(operator, method, request_)  # type: ignore[arg-type]
    if good:
        authorizer.check(LAB, method, request_)  # type: ignore[arg-type]
    else:
        with pytest.raises(PermissionDeniedError):
            authorizer.check(LAB, method, request_)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [{}, {"authorization": GOOD}, {"authorization": b"Bearer x"}])
def test_a_call_without_a_bearer_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(UnauthenticatedError):
        Authorizer({"k1": KEY}).caller(given)


def token(tenant: str, role: Role | None = None) -> str:
    return Signer("k1", KEY).sign(tenant, subject="x", expires_s=NOW + 60, role=role)


def test_roles_travel_and_have_defaults() -> None:
    verifier = Verifier({"k1": KEY})
    assert verifier.read(token("lab"), NOW).role is Role.USER
    assert verifier.read(token(ANY_TENANT), NOW).role is Role.ADMIN
    for role in Role:
        assert verifier.read(token("lab", role), NOW).role is role


@pytest.mark.parametrize(
    ("role", "method", "request_", "good"),
    [
        (Role.WORKER, "Connect", agent_service_pb2.ConnectRequest(hello={"worker": "w"}), True),
        (Role.WORKER, "GetVersion",
         dataset_service_pb2.GetVersionRequest(name="tenants/lab/datasets/a"), True),
        (Role.WORKER, "CancelWorkflow",
         workflow_service_pb2.CancelWorkflowRequest(name="tenants/lab/workflows/w"), False),
        (Role.WORKER, "DrainWorker", workflow_service_pb2.DrainWorkerRequest(name="workers/w"),
         False),
        (Role.WORKER, "SomethingNew", cluster_service_pb2.GetClusterRequest(), False),
        (Role.USER, "DrainWorker", workflow_service_pb2.DrainWorkerRequest(name="workers/w"),
         False),
        (Role.USER, "CreateToken", cluster_service_pb2.CreateTokenRequest(parent="tenants/lab"),
         False),
        (Role.ADMIN, "CreateToken", cluster_service_pb2.CreateTokenRequest(parent="tenants/lab"),
         True),
    ],
    ids=map(str, range(8)),
)  # fmt: skip
def test_roles_are_judged_for_all_tenants(
    role: Role, method: str, request_: object, good: bool
) -> None:
    claims = Claims(ANY_TENANT, "", NOW, "1", role)
    if good:
        Authorizer({"k1": KEY}).check(claims, method, request_)  # type: ignore[arg-type]
    else:
        with pytest.raises(PermissionDeniedError):
            Authorizer({"k1": KEY}).check(claims, method, request_)  # type: ignore[arg-type]


def test_an_admin_of_one_tenant_makes_no_token_of_another() -> None:
    request = cluster_service_pb2.CreateTokenRequest
    admin = Claims("lab", "", NOW, "1", Role.ADMIN)
    Authorizer({"k1": KEY}).check(admin, "CreateToken", request(parent="tenants/lab"))
    for parent in ("tenants/*", "tenants/bob", "lab", ""):
        with pytest.raises(PermissionDeniedError):
            Authorizer({"k1": KEY}).check(admin, "CreateToken", request(parent=parent))


def test_a_revoked_token_is_refused_from_then_on() -> None:
    revoked: set[str] = set()
    authorizer = Authorizer({"k1": KEY}, revoked)
    shown = Signer("k1", KEY).sign("lab", subject="", expires_s=4e9)
    claims = authorizer.caller({"authorization": f"Bearer {shown}"})
    assert token_id(shown) == claims.id == token_id(claims.id)
    revoked.add(claims.id)
    with pytest.raises(UnauthenticatedError, match="revoked"):
        authorizer.caller({"authorization": f"Bearer {shown}"})
    with pytest.raises(UnauthenticatedError, match="revoked"):
        authorizer.still(claims)  # in a stream that is open


@given(st.text(max_size=60))
def test_ids_of_what_is_no_token(text: str) -> None:
    if "." in text:
        with pytest.raises(InvalidArgumentError):
            token_id(text)
