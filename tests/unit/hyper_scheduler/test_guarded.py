"""Providers that misbehave harm nobody but themselves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from hyper.errors import FailedPreconditionError, UnavailableError
from hyper_scheduler.placement.ledger import Machine
from hyper_scheduler.placement.offers import Offer
from hyper_scheduler.providers import guarded, make
from hyper_scheduler.providers.base import Instance, Order, RefusedError, all_of
from hyper_scheduler.providers.guarded import Guarded
from hyper_servicekit.clock import ManualClock
from tests.unit.hyper_scheduler.cores import Core, W, experiment, recipe
from tests.unit.hyper_scheduler.scaling import Provider, autoscaler


@dataclass
class Odd(Provider):
    """Raises what providers' libraries raise, or never answers."""

    raises: BaseException | None = None
    hangs: bool = False
    asked: int = 0
    limit: asyncio.Event = field(default_factory=asyncio.Event)

    async def _odd(self) -> None:
        self.asked += 1
        if self.raises is not None:
            raise self.raises
        if self.hangs:
            await self.limit.wait()

    async def launch(self, order: Order) -> str:
        await self._odd()
        return await super().launch(order)

    async def instances(self) -> Sequence[Instance]:
        if self.hangs:
            await self._odd()
        return await super().instances()

    async def terminate(self, ids: Sequence[str]) -> None:
        await self._odd()
        await super().terminate(ids)


def order() -> Order:
    return Order("m-1", "offer", "type", "region", "zone", True, "network", {})


@pytest.mark.parametrize(
    "error",
    [ValueError("not a number"), ExceptionGroup("of tasks", [UnavailableError("no answer")]),
     ExceptionGroup("of tasks", [KeyError("name")])],
)  # fmt: skip
async def test_every_error_is_one_of_ours(error: Exception) -> None:
    provider = Guarded("odd", lambda: Odd(raises=error))
    for call in (provider.launch(order()), provider.terminate(["i-1"])):
        with pytest.raises(UnavailableError, match=r"odd|no answer"):
            await call


async def test_a_refusal_stays_one() -> None:
    provider = Guarded("odd", lambda: Odd(raises=RefusedError("Quota", "used up")))
    with pytest.raises(RefusedError, match="Quota"):
        await provider.launch(order())


async def test_what_cannot_be_made_now_is_made_later() -> None:
    away = True

    def make_it() -> Provider:
        if away:
            raise OSError("no daemon")
        return Provider()

    provider = Guarded("late", make_it)
    with pytest.raises(UnavailableError, match="no daemon"):
        await provider.instances()
    await provider.close()
    away = False
    assert await provider.instances() == []


async def test_who_never_answers_is_not_waited_for_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guarded, "LIMITS_S", dict.fromkeys(guarded.LIMITS_S, 0.05))
    clock = ManualClock()
    odd = Odd(hangs=True)
    provider = Guarded("hung", lambda: odd, clock.monotonic)
    with pytest.raises(UnavailableError, match="has not answered"):
        await provider.instances()
    for _ in range(3):
        with pytest.raises(UnavailableError, match="asked again in"):
            await provider.instances()
    assert odd.asked == 1
    await clock.advance(guarded.FIRST_S)
    odd.hangs = False
    assert await provider.instances() == []


async def test_one_providers_error_keeps_no_other_from_ending_machines() -> None:
    odd, good = Odd(), Provider()
    scaler, _ = autoscaler(Core(), broken=Guarded("broken", lambda: odd), good=good)
    for name, offer, provider in (("broken", "cheap", odd), ("good", "dear", good)):
        provider.there.append(Instance(f"i-m-{name}", f"m-{name}"))
        entry = Machine(offer, W, "a", name, True, 1.0, 1.0, 1, 0.0, 0.0, 0.0, f"i-m-{name}")
        scaler.ledger.open(f"m-{name}", entry)
    odd.raises = ExceptionGroup("of tasks", [UnavailableError("no answer")])
    for _ in range(4):
        await scaler.look()
    assert (len(odd.there), good.there) == (1, [])
    odd.raises = None
    for _ in range(3):
        await scaler.look()
    assert (odd.there, scaler.ledger.machines) == ([], {})


async def test_an_odd_error_at_launch_is_backed_off_from() -> None:
    core = Core()
    core.submit(recipe(replace(experiment("a", 30), workers=3)))
    odd, good = Odd(raises=ValueError("cpus: two")), Provider()
    scaler, _ = autoscaler(core, broken=Guarded("broken", lambda: odd), good=good)
    for _ in range(3):
        await scaler.look()
    refused = {key: each for key, each in scaler.refusals.items() if key.startswith("cheap/")}
    assert 1 <= odd.asked == len(refused)  # none is asked for again
    assert {(each.reason, each.count) for each in refused.values()} == {("Unreachable", 1)}
    assert good.there


async def test_the_rest_of_many_goes_on_after_an_error() -> None:
    done: list[int] = []

    async def one(number: int) -> None:
        await asyncio.sleep(0.001 * number)
        if number == 0:
            raise UnavailableError("the first")
        done.append(number)

    with pytest.raises(UnavailableError, match="the first"):
        await all_of(one, range(5))
    assert done == [1, 2, 3, 4]


async def test_never_more_than_so_many_at_once() -> None:
    now = most = 0

    def counted(_: int) -> Awaitable[None]:
        async def run() -> None:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.001)
            now -= 1

        return run()

    await all_of(counted, range(50), at_once=7)
    assert (now, most) == (0, 7)


def test_what_is_not_installed_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(FailedPreconditionError, match=r"pip install .*\[aws\]"):
        make.make_providers([Offer("a", "aws")], lambda: "c", {})


@pytest.mark.parametrize("name", ["docker", "gcp", "kubernetes"])
async def test_a_provider_that_is_away_at_the_start_comes_later(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    pytest.importorskip(make.PACKAGES[name])
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none"))
    (provider,) = make.make_providers([Offer("a", name)], lambda: "c", {}).values()
    with pytest.raises(UnavailableError, match=name):
        await provider.instances()
    await provider.close()
