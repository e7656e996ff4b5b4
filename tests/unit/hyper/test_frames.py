"""Frames come out as they went in, whole or not at all."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyper._frames import Frame, Kind, metadata_from_json, metadata_to_json, pack, read

facts = st.dictionaries(st.text(max_size=9).map("x".__add__), st.text() | st.floats(0, 1e9))
frames = st.builds(Frame, st.sampled_from(Kind), st.integers(0, 2**40), facts, st.binary())
texts = st.text(st.characters(codec="ascii"), max_size=20)
pairs = st.tuples(texts.map("{}-text".format), texts) | st.tuples(
    texts.map("{}-bin".format), st.binary(max_size=20)
)


def through(data: bytes) -> list[Frame]:
    """What is read of `data` by the other end of a socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def send() -> None:
            ours.sendall(data)
            ours.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        found = list(read(theirs))
        sender.join()
    return found


@settings(max_examples=30)
@given(st.lists(frames, max_size=4))
def test_frames_come_as_they_went(several: list[Frame]) -> None:
    assert through(b"".join(map(pack, several))) == several


@given(frames, frames, st.data())
def test_half_a_frame_is_none(first: Frame, second: Frame, data: Any) -> None:
    whole = pack(second)
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert through(pack(first) + whole[:cut]) == [first]


def test_a_large_body() -> None:
    frame = Frame(Kind.RESPONSE, 1, {}, bytes(range(256)) * 40_000)
    assert through(pack(frame)) == [frame]


@given(st.lists(pairs))
def test_metadata(several: list[tuple[str, str | bytes]]) -> None:
    (frame,) = through(pack(Frame(Kind.STATUS, 0, {"trailing": metadata_to_json(several)})))
    assert metadata_from_json(frame.facts["trailing"]) == tuple(several)


def test_text_that_is_none() -> None:
    with pytest.raises(UnicodeEncodeError):
        pack(Frame(Kind.CALL, 0, {"metadata": [["authorization", "Bearer \udcff"]]}))
