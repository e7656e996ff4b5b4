"""Container images: pulled once, however many attempts wait for one.

An image that was pulled with a login stays on the machine, and other tenants' tasks run there, too:
whoever asks for it must be let in by its registry. `private-images` remembers which these are.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
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
        private: the file that lists the images that were pulled with a login; of all agents here.
    """

    def __init__(self, api: docker.APIClient, thread: _Thread, private: Path) -> None:
        self._api, self._thread, self._private = api, thread, private
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._seen: dict[tuple[str, str], float] = {}

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
            now = time.monotonic()
            self._seen = {key: at for key, at in self._seen.items() if now - at < _KNOWN_S}
            if (image, login) in self._seen:
                return
            try:
                found = await self._thread(partial(self._id, image))
                if not found:
                    say(f"fetching image {image}")
                    await self._thread(partial(self._pull, image, login))
                elif await self._thread(partial(self._is_private, found)):
                    await self._thread(partial(self._ask_registry, image, login))
            except (DockerException, requests.RequestException) as error:
                reason = getattr(error, "explanation", None) or error
                raise ValueError(f"image {image!r} cannot be fetched: {reason}") from error
            self._seen[image, login] = time.monotonic()

    def _id(self, image: str) -> str:
        """What it is, under whatever name; "" if it is not here."""
        try:
            return str(self._api.inspect_image(image)["Id"])
        except ImageNotFound:
            return ""

    def _is_private(self, image_id: str) -> bool:
        return self._private.exists() and image_id in self._private.read_text().split()

    def _ask_registry(self, image: str, login: str) -> None:
        """Raise if the registry does not let this login have the image."""
        self._api.inspect_distribution(image, auth_config=_auth(login))

    def _pull(self, image: str, login: str) -> None:
        name, tag = image, None
        if "@" not in image:
            head, colon, tail = image.rpartition(":")
            name, tag = (head, tail) if colon and "/" not in tail else (image, "latest")
        pulled = self._api.pull(name, tag=tag, auth_config=_auth(login), stream=True, decode=True)
        for line in pulled:
            if "error" in line:
                raise DockerException(line["error"])
        if login:
            with self._private.open("a") as file:  # one write: agents of this machine share it
                file.write(f"{self._id(image)}\n")


def _auth(login: str) -> dict[str, str] | None:
    user, _, password = login.partition(":")
    return {"username": user, "password": password} if login else None
