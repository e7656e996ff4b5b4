"""Overlays against a dict: every shard is where its newest writer put it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper.errors import ResourceExhaustedError
from hyper_storage.arrays import overlay as module
from hyper_storage.arrays.overlay import Overlay, decode_overlay, encode_overlay
from hyper_storage.external import Sealer

SHARDS = [f"{i}/{j}" for i in range(3) for j in range(3)]
edits = st.lists(st.frozensets(st.sampled_from(SHARDS)), max_size=6)


@given(edits)
def test_every_shard_is_found_where_it_was_written_last(layers: list[frozenset[str]]) -> None:
    overlay, model = Overlay("base"), dict.fromkeys(SHARDS, "base")
    for number, shards in enumerate(layers):
        overlay = overlay.with_layer(f"layer{number}", shards)
        model.update(dict.fromkeys(shards, f"layer{number}"))
    assert {shard: overlay.find(shard) for shard in SHARDS} == model
    assert decode_overlay(encode_overlay(overlay)) == overlay
    assert overlay.prefixes == set(model.values()) | {"base"}


@given(edits, edits)
def test_what_is_newer_is_what_was_written_since(
    before: list[frozenset[str]], since: list[frozenset[str]]
) -> None:
    old = Overlay("base")
    for number, shards in enumerate(before):
        old = old.with_layer(f"old{number}", shards)
    new = old
    for number, shards in enumerate(since):
        new = new.with_layer(f"new{number}", shards)
    assert new.newer_than(old) == frozenset().union(*since)
    assert Overlay("other").newer_than(old) is None


def test_an_overlay_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SHARDS", 3)
    overlay = Overlay("base").with_layer("a", {"0", "1"}).with_layer("b", {"1", "2"})
    with pytest.raises(ResourceExhaustedError, match="publish"):
        overlay.with_layer("c", {"3"})


def test_a_sealed_secret_opens_only_for_what_it_was_sealed() -> None:
    sealer = Sealer("passphrase")
    sealed = sealer.seal("secret", "lab/store")
    assert "secret" not in sealed
    assert sealer.open(sealed, "lab/store") == "secret"
    assert sealer.seal("secret", "lab/store") != sealed
    assert Sealer("newer", "passphrase").open(sealed, "lab/store") == "secret"
    for other, purpose in ((Sealer("another"), "lab/store"), (sealer, "bob/store")):
        with pytest.raises(ValueError, match="another key"):
            other.open(sealed, purpose)
