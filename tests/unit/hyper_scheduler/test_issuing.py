"""Tokens that the scheduler makes."""

from __future__ import annotations

from hyper_scheduler.issuing import machine_token
from hyper_servicekit.tokens import Role, Signer, Verifier

KEY = "k" * 32


def test_a_machine_is_let_in_as_a_worker_alone() -> None:
    claims = Verifier({"k1": KEY}).read(machine_token(Signer("k1", KEY), "m7", 1000.0), 1000.0)
    assert claims.role == Role.WORKER
    assert "m7" in claims.subject


def test_a_cluster_without_keys_makes_no_tokens() -> None:
    assert machine_token(None, "m7", 1000.0) == ""
