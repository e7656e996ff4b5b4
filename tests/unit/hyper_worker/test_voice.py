"""Lines of output that speak to Hyper, however they are cut into parts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyper_worker.voice import Metrics, Voice


class Log:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def listen(*parts: bytes) -> tuple[Voice, Log, list[Metrics]]:
    log, heard = Log(), []
    voice = Voice(log, heard.append)
    for part in parts:
        voice.write(part)
    voice.close()
    return voice, log, heard


TEXT = (
    b'hello\n::hyper report {"step": 1, "metrics": {"auc": 0.5}}\nnot ::hyper report {}\n'
    b'::hyper result {"list.json": ["a"]}\n\n::hyper report {"step": 2, "metrics": {"auc": 1}}'
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(TEXT)), max_size=12))
def test_parts_do_not_matter(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(TEXT)]
    parts = [TEXT[a:b] for a, b in itertools.pairwise(places)]
    voice, log, heard = listen(*parts)
    assert log.data == TEXT
    assert heard == [Metrics(1, (("auc", 0.5),)), Metrics(2, (("auc", 1.0),))]
    assert voice.result_json == '{"list.json": ["a"]}'
    assert not voice.problem


@pytest.mark.parametrize(
    "line",
    [b"::hyper result {", b"::hyper sing {}", b"::hyper report 3",
     b'::hyper report {"step": -1, "metrics": {}}', b'::hyper report {"metrics": {"a": "b"}}',
     b'::hyper result "' + b"x" * 70_000 + b'"', b"::hyper result " + b"[" * 60_000],
)  # fmt: skip
def test_mistakes_are_said(line: bytes) -> None:
    voice, log, heard = listen(line + b"\n")
    assert voice.problem and not heard and not voice.result_json
    assert b"[hyper: " in log.data


@pytest.mark.parametrize("characters", [65_600, 200_000])
def test_a_result_that_is_too_long_is_called_so(characters: int) -> None:
    voice, _, _ = listen(b'::hyper result "' + b"x" * characters + b'"\n')
    assert "over 65536 bytes; write it to a dataset" in voice.problem


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_output_is_passed_on(parts: list[bytes]) -> None:
    _, log, _ = listen(*parts)
    assert log.data.startswith(b"".join(parts)) or b"[hyper: " in log.data


def test_numbers_that_are_not_finite_are_left_out() -> None:
    _, _, heard = listen(b'::hyper report {"step": 0, "metrics": {"a": NaN, "b": 1e999, "c": 2}}\n')
    assert heard == [Metrics(0, (("c", 2.0),))]
