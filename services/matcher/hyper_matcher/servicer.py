"""The matcher's RPCs: proto in, proto out. Work runs on a bounded pool of threads."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from prometheus_client import Counter, Gauge, Histogram

from hyper.errors import InvalidArgumentError, ResourceExhaustedError
from hyper_matcher import convert
from hyper_matcher.align.geometry import PairMatches, Rejection
from hyper_matcher.align.match import Found, Guess, search
from hyper_matcher.config import Settings
from hyper_matcher.ncc import SearchImage
from hyper_matcher.sections import (
    ArrayLike,
    Matcher,
    SectionCache,
    check_array,
    check_pairs,
    window_of,
)
from hyper_servicekit.logs import get_logger
from hyperapi.matcher.v1 import matcher_service_pb2 as api
from hyperapi.matcher.v1 import matcher_service_pb2_grpc as api_grpc

log = get_logger(__name__)
PAIR_SECONDS = Histogram(
    "hyper_matcher_pair_seconds",
    "Time to match a pair of sections.",
    buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
MATCHES = Counter("hyper_matcher_matches_total", "Matches by outcome.", ("outcome",))
WAITING = Gauge("hyper_matcher_calls_waiting", "Calls that wait for a thread.")
REFUSED = Counter("hyper_matcher_calls_refused_total", "Calls turned away: the queue was full.")

OpenArray = Callable[[str], ArrayLike]
T = TypeVar("T")


class Pool:
    """A bounded number of threads, and of calls that wait for one.

    Args:
        threads: how many work.
        queue: how many more may wait.
        retry_after_s: told to those turned away.
    """

    def __init__(self, threads: int, queue: int, retry_after_s: float) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="match")
        self._threads, self._places, self._retry_after_s = threads, threads + queue, retry_after_s
        self.calls = 0  # that work or wait

    def __enter__(self) -> Pool:
        """Take one of the places for a call.

        Raises:
            ResourceExhaustedError: all are taken.
        """
        if self.calls >= self._places:
            REFUSED.inc()
            raise ResourceExhaustedError(
                f"the matcher works on {self._threads} calls and {self._places - self._threads} "
                "wait already; try again soon",
                reason="QUEUE_FULL",
                retry_after_s=self._retry_after_s,
            )
        self.calls += 1
        WAITING.set(max(0, self.calls - self._threads))
        return self

    def __exit__(self, *exception: object) -> None:
        self.calls -= 1
        WAITING.set(max(0, self.calls - self._threads))

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function on a thread; it goes on to its end if the call is cancelled."""
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()  # its logs and traces are of this call
        return await loop.run_in_executor(self._executor, context.run, function, *arguments)

    def submit(self, function: Callable[[], None]) -> None:
        """Run a function on a thread, for whoever comes later."""

        def logged() -> None:
            try:
                function()
            except Exception:
                log.exception("work in the background failed")
                raise

        self._executor.submit(logged)

    def close(self) -> None:
        """Wait for the threads."""
        self._executor.shutdown(cancel_futures=True)


class MatcherServicer(api_grpc.MatcherServiceServicer):
    """`hyperapi.matcher.v1.MatcherService`.

    Args:
        settings: limits.
        pool: where the work runs.
        open_array: gives an array by its resource name; blocks.
    """

    def __init__(self, settings: Settings, pool: Pool, open_array: OpenArray) -> None:
        self._settings, self._pool, self._open_array = settings, pool, open_array
        self._cache = SectionCache(settings.sections_cached)

    async def Match(  # noqa: N802  (gRPC name)
        self, request: api.MatchRequest, context: Any
    ) -> api.MatchResponse:
        """Templates round points of one inline image, searched for in another."""
        if len(request.points) > self._settings.points_max:
            raise InvalidArgumentError(
                f"{len(request.points)} points in one call; send at most "
                f"{self._settings.points_max}",
                field="points",
            )
        with self._pool:
            found = await self._pool.run(match_images, request)
        _count(found.rejection)
        return api.MatchResponse(
            matches=convert.matches_to(found, keep_rejected=request.options.keep_rejected)
        )

    async def MatchSections(  # noqa: N802  (gRPC name)
        self, request: api.MatchSectionsRequest, context: Any
    ) -> AsyncIterator[api.MatchSectionsResponse]:
        """Pairs of sections of a stored array, streamed pair by pair in the order given."""
        options = convert.options_from(
            request.options, spacing_px=request.spacing_px, downsample=request.downsample
        )
        pairs = [(pair.source_z, pair.target_z) for pair in request.pairs]
        guesses = [convert.guess_from(pair) for pair in request.pairs]
        if not request.array.name:
            raise InvalidArgumentError("name the array to match in", field="array.name")
        with self._pool:
            array = await self._pool.run(self._open_array, request.array.name)
            check_array(array, self._settings.section_pixels_max)
            check_pairs(pairs, array.shape, self._settings.pairs_max)
            window = window_of(request.array.box, array.shape)
            matcher = Matcher(array, window, options, self._cache)
            for ends, guess in zip(pairs, guesses, strict=True):
                pair = await self._pool.run(matcher.match, *ends, guess)
                _observe(pair)
                for response in convert.pair_to(
                    pair,
                    keep_rejected=request.options.keep_rejected,
                    matches_a_message=self._settings.matches_a_message,
                ):
                    yield response


def match_images(request: api.MatchRequest) -> Found:
    """The work of `Match`.

    Raises:
        InvalidArgumentError: anything in the request that cannot be matched.
    """
    source = convert.image_from(request.source, "source")
    target = convert.image_from(request.target, "target")
    points = convert.points_from(request.points, "points")
    if len(points) == 0:
        raise InvalidArgumentError("no points were given", field="points")
    guesses = convert.points_from(request.guesses, "guesses")
    if len(guesses) not in (0, len(points)):
        raise InvalidArgumentError(
            f"{len(guesses)} guesses for {len(points)} points; give one each, or none",
            field="guesses",
        )
    options = convert.options_from(request.options)
    template = options.template_px
    radius = options.search_px or max(16, round(0.03 * max(target.shape)))
    if template > min(source.shape):
        raise InvalidArgumentError(
            f"the template ({template} px) is larger than the source {source.shape}",
            field="options.template_px",
        )
    if template + 2 * radius > min(target.shape):
        raise InvalidArgumentError(
            f"a template of {template} px and a search of {radius} px round it need a target of "
            f"at least {template + 2 * radius} px, not {target.shape}",
            field="options.search_px",
        )
    expected = points + guesses if len(guesses) else points
    guess = Guess(points, expected, np.broadcast_to(np.eye(2), (len(points), 2, 2)))
    return search(SearchImage(source), SearchImage(target), guess, template, radius, options.peaks)


def _observe(pair: PairMatches) -> None:
    PAIR_SECONDS.observe(pair.compute_s)
    _count(pair.rejection)
    log.info(
        "pair matched",
        source_z=pair.source_z,
        target_z=pair.target_z,
        accepted=int(pair.accepted.sum()),
        points=len(pair.rejection),
        flag=pair.flag,
        seconds=round(pair.compute_s, 3),
    )


def _count(rejection: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    numbers = np.bincount(rejection, minlength=len(Rejection))
    for reason in Rejection:
        if numbers[reason]:
            MATCHES.labels(reason.name.lower()).inc(int(numbers[reason]))
