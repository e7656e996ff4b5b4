"""Images on a machine that several tenants' tasks use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError, ImageNotFound

from hyper_worker.runner.images import Images

PRIVATE, PUBLIC = "registry.example.org/lab/net:1", "python:3.11"
LOGIN = "ada:right"


class Daemon:
    """Of docker's API what is used; its registry lets one login have the private image."""

    def __init__(self) -> None:
        self.here: set[str] = set()
        self.asked = 0

    def inspect_image(self, image: str) -> dict[str, str]:
        if image not in self.here:
            raise ImageNotFound("no such image")
        return {"Id": f"sha256:{image.partition('@')[0].partition(':')[0]}"}

    def pull(self, name: str, **more: Any) -> Iterator[dict[str, str]]:
        image = name if more["tag"] is None else f"{name}:{more['tag']}"
        self.inspect_distribution(image, more["auth_config"])
        self.here |= {image, f"{name}@sha256:0"}
        yield {"status": "done"}

    def inspect_distribution(self, image: str, auth_config: dict[str, str] | None) -> None:
        self.asked += 1
        allowed = auth_config == {"username": "ada", "password": "right"}
        if image != PUBLIC and not allowed:
            raise APIError("unauthorized")


async def here(work: Callable[[], Any]) -> Any:
    return work()


def images(daemon: Daemon, folder: Path) -> Images:
    return Images(daemon, here, folder / "private-images")


@pytest.mark.parametrize("image", [PRIVATE, "registry.example.org/lab/net@sha256:0"])
async def test_an_image_of_a_login_is_for_those_who_may_have_it(tmp_path: Path, image: str) -> None:
    daemon = Daemon()
    first = images(daemon, tmp_path)
    await first.ensure(PRIVATE, LOGIN, lambda text: None)
    for each in (first, images(daemon, tmp_path)):  # another agent, or the same started again
        for login in ("", "bob:guess"):
            with pytest.raises(ValueError, match="cannot be fetched"):
                await each.ensure(image, login, lambda text: None)
        await each.ensure(image, LOGIN, lambda text: None)


async def test_other_images_are_pulled_once_and_the_registry_is_not_asked_again(
    tmp_path: Path,
) -> None:
    daemon = Daemon()
    for _ in range(3):
        await images(daemon, tmp_path).ensure(PUBLIC, "", lambda text: None)
    assert daemon.asked == 1
