"""Container images: pulled once, however many attempts wait for one."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

import docker
import requests
from docker.errors import DockerException, ImageNotFound

_KNOWN_S = 60.0  # an image that was there is not looked for again so soon


class _Thread(Protocol):
    def __call__(self, work: Callable[[], Any]) -> Awaitable[Any]: ...


class Images:
    """The images of this machine's daemon.

    Args:
        api: of the daemon.
        thread: does something that blocks.
    """

    def __init__(self, api: docker.APIClient, thread: _Thread) -> None:
        self._api, self._thread = api, thread
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._seen: dict[str, float] = {}

    async def ensure(self, image: str, login: str, say: Callable[[str], None]) -> None:
        """The image is on this machine on return.

        Args:
            image: name with tag or digest.
            login: "user:password" of its registry, or "".
            say: is told of a pull.

        Raises:
            ValueError: it cannot be had.
        """
        async with self._locks[image]:
            if time.monotonic() - self._seen.get(image, -_KNOWN_S) < _KNOWN_S:
                return
            try:
                if not await self._thread(partial(self._exists, image)):
                    say(f"fetching image {image}")
                    await self._thread(partial(self._pull, image, login))
            except (DockerException, requests.RequestException) as error:
                reason = getattr(error, "explanation", None) or error
                raise ValueError(f"image {image!r} cannot be fetched: {reason}") from error
            self._seen[image] = time.monotonic()

    def _exists(self, image: str) -> bool:
        try:
            self._api.inspect_image(image)
        except ImageNotFound:
            return False
        return True

    def _pull(self, image: str, login: str) -> None:
        name, tag = image, None
        if "@" not in image:
            head, colon, tail = image.rpartition(":")
            name, tag = (head, tail) if colon and "/" not in tail else (image, "latest")
        user, _, password = login.partition(":")
        auth = {"username": user, "password": password} if login else None
        for line in self._api.pull(name, tag=tag, auth_config=auth, stream=True, decode=True):
            if "error" in line:
                raise DockerException(line["error"])
