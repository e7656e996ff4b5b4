"""TFRecord and the cleaning of text."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.workloads import code_of


@pytest.fixture(scope="module")
def tfrecord() -> Iterator[ModuleType]:
    with code_of("text", "tfrecord_format") as module:
        yield module


@pytest.fixture(scope="module")
def text() -> Iterator[ModuleType]:
    with code_of("text", "text_to_tfrecord") as module:
        yield module


def test_a_record_as_tensorflow_writes_it(tfrecord: ModuleType) -> None:
    """The bytes of `tf.io.TFRecordWriter` for b"hello" (TensorFlow 2.21)."""
    assert tfrecord.frame(b"hello").hex() == TENSORFLOW_HELLO


def test_an_example_as_tensorflow_writes_it(tfrecord: ModuleType) -> None:
    """`tf.train.Example` with text b"ab", n 300, share 0.5, serialized deterministically."""
    found = tfrecord.encode_example({"text": "ab", "n": 300, "share": 0.5})
    assert found.hex() == TENSORFLOW_EXAMPLE


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_records_come_back(tfrecord: ModuleType, messages: list[bytes]) -> None:
    data = b"".join(map(tfrecord.frame, messages))
    assert list(tfrecord.unframe(data)) == messages
    if data:
        with pytest.raises(ValueError, match="record"):
            list(tfrecord.unframe(data[:-1]))
        broken = bytearray(data)
        broken[-1] ^= 1
        with pytest.raises(ValueError, match="damaged"):
            list(tfrecord.unframe(bytes(broken)))


def test_cleaning(text: ModuleType) -> None:
    found = text.clean("<p class=x>Caf&eacute; &amp; \uff34ea, it's  5_000.</p><b>")
    assert found == ["café", "tea", ",", "it's", "5", "000", "."]


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("a<SCRIPT src=x>b < c</Script >d", ["a", "d"]),
        ("a<style>p {}</style>b<!-- <b>c</b> > -->d", ["a", "b", "d"]),
        ("a<scripted>b", ["a", "b"]),
        ("a<!-- b<script>c</script>d", ["a"]),
        ("\u0130<script>\u0130</script>b", ["i", "b"]),
    ],
)
def test_what_nobody_sees_is_left_out(text: ModuleType, page: str, words: list[str]) -> None:
    assert text.clean(page) == words


def test_cleaning_takes_time_in_proportion(text: ModuleType) -> None:
    """A page of beginnings without ends: seconds if each were looked for to the end again."""
    assert text.clean("<script" * 300_000) == []
    assert text.clean("<!--" * 300_000) == []


def test_pieces_end_with_sentences(text: ModuleType) -> None:
    words = (["word"] * 19 + ["."]) * 20
    pieces = text.split(words)
    assert [word for piece in pieces for word in piece] == words
    assert all(len(piece) <= text.CHUNK_WORDS and piece[-1] == "." for piece in pieces)
    assert [len(p) for p in text.split(["w"] * 300)] == [128, 128, 44]
    assert text.split([]) == []


def test_a_bomb_is_refused(text: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "UNZIPPED_BYTES_MAX", 1000)
    assert text.unzip(gzip.compress(b"x" * 1000)) == b"x" * 1000
    with pytest.raises(ValueError, match="more than"):
        text.unzip(gzip.compress(b"x" * 1001))


def test_pages_are_the_same_every_time(text: ModuleType) -> None:
    one, two = (text.page(random.Random(4)) for _ in range(2))
    assert one == two
    assert len(text.clean(gzip.decompress(one).decode())) > 50


TENSORFLOW_HELLO = "0500000000000000eab2043e68656c6c6fbb1f1c19"
TENSORFLOW_EXAMPLE = (
    "0a300a0b0a016e12061a040a02ac020a110a057368617265120812060a040000003f0a0e0a047465787412060a040a02"
    "6162"
)
