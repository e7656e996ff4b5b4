"""`python -m hyper_scheduler.forecasting`: forecasts in a process of their own.

They are minutes of plain Python for whoever asks for many samples: the leader, which asks on behalf
of users, must not spend them itself. Questions come as JSON by standard input, answers go out so.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from hyper_scheduler.placement.forecast import forecast
from hyper_scheduler.placement.hazard import Hazard, Prior
from hyper_scheduler.placement.simulation import Outcome
from hyper_scheduler.placement.view import Market, Unit, View

_NICE = 10


@dataclass(frozen=True, slots=True)
class Question:
    """A job that could start now.

    Args:
        view: the moment, nothing held.
        hazards: of its spot markets, in order.
    """

    view: View
    hazards: tuple[Hazard, ...]


def pack(questions: Sequence[Question], samples: int) -> bytes:
    """What the process reads."""
    return json.dumps({"samples": samples, "questions": list(map(asdict, questions))}).encode()


def unpack(text: bytes) -> list[list[Outcome]]:
    """What the process has written: the outcomes of each question, one a sample."""
    return [[Outcome(**each) for each in outcomes] for outcomes in json.loads(text)]


def answer(text: bytes) -> bytes:
    """What `pack` gave, answered."""
    asked = json.loads(text)
    found = [
        forecast(question.view, question.hazards, asked["samples"], Random(0))
        for question in map(_question, asked["questions"])
    ]
    return json.dumps([list(map(asdict, outcomes)) for outcomes in found]).encode()


def _question(plain: Mapping[str, Any]) -> Question:
    fields = dict(plain["view"])
    markets = tuple(Market(**each) for each in fields.pop("markets"))
    units = tuple(Unit(*each) for each in fields.pop("units"))
    hazards = tuple(
        Hazard(**{**each, "prior": Prior(**each["prior"])}) for each in plain["hazards"]
    )
    return Question(View(markets=markets, units=units, **fields), hazards)


if __name__ == "__main__":
    os.nice(_NICE)
    sys.stdout.buffer.write(answer(sys.stdin.buffer.read()))
