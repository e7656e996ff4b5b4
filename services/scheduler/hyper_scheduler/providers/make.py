"""The providers that a catalogue names, made when first named."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from hyper.errors import FailedPreconditionError
from hyper_scheduler.providers.base import Provider
from hyper_scheduler.providers.process import ProcessProvider

Options = Mapping[str, str]
Maker = Callable[[str, Options], Provider]


def _process(cluster: str, options: Options) -> Provider:
    folder = options.get("folder") or str(Path(tempfile.gettempdir()) / f"hyper-agents-{cluster}")
    return ProcessProvider(cluster, Path(folder))


MAKERS: dict[str, Maker] = {"process": _process}


def make_providers(
    names: Iterable[str], cluster: str, options: Mapping[str, Options]
) -> dict[str, Provider]:
    """By name.

    Raises:
        FailedPreconditionError: one is not known, or what it needs is not installed.
    """
    made = {}
    for name in names:
        maker = MAKERS.get(name)
        if maker is None:
            raise FailedPreconditionError(
                f"the catalogue names provider {name!r}; known are {', '.join(sorted(MAKERS))}"
            )
        made[name] = maker(cluster, options.get(name, {}))
    return made
