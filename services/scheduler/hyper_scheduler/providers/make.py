"""The providers that a catalogue names, made when first named."""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from hyper.errors import FailedPreconditionError
from hyper.installed import install_command
from hyper_scheduler.placement.offers import Offer
from hyper_scheduler.providers.base import Provider
from hyper_scheduler.providers.guarded import Guarded

Options = Mapping[str, str]
# A maker gets the cluster's name, the provider's options, and the offers that name it.
Maker = Callable[[str, Options, Sequence[Offer]], Provider]


def _process(cluster: str, options: Options, offers: Sequence[Offer]) -> Provider:
    from hyper_scheduler.providers.process import ProcessProvider

    folder = options.get("folder") or str(Path(tempfile.gettempdir()) / f"hyper-agents-{cluster}")
    return ProcessProvider(cluster, Path(folder))


def _ssh(cluster: str, options: Options, offers: Sequence[Offer]) -> Provider:
    from hyper_scheduler.providers.ssh import SshProvider

    return SshProvider(cluster, offers)


def _slurm(cluster: str, options: Options, offers: Sequence[Offer]) -> Provider:
    from hyper_scheduler.providers.slurm import SlurmProvider

    return SlurmProvider(cluster)


def _docker(cluster: str, options: Options, offers: Sequence[Offer]) -> Provider:
    from hyper_scheduler.providers.docker import DockerProvider

    return DockerProvider(cluster)


def _aws(cluster: str, options: Options, offers: Sequence[Offer]) -> Provider:
    from hyper_scheduler.providers.aws import AwsProvider

    return AwsProvider(cluster, [each.region for each in offers], options.get("endpoint"))


def _gcp(cluster: str, options: Options, offers: Sequence[Offer]) -> Provider:
    from hyper_scheduler.providers.gcp import GcpProvider

    return GcpProvider(cluster, options, options.get("endpoint"))


def _kubernetes(cluster: str, options: Options, offers: Sequence[Offer]) -> Provider:
    from hyper_scheduler.providers.kubernetes import KubernetesProvider

    return KubernetesProvider(cluster, options)


MAKERS: dict[str, Maker] = {
    "aws": _aws,
    "docker": _docker,
    "gcp": _gcp,
    "kubernetes": _kubernetes,
    "process": _process,
    "slurm": _slurm,
    "ssh": _ssh,
}

# What has to be installed for it.
PACKAGES = {
    "aws": "boto3", "docker": "docker", "gcp": "google.cloud.compute_v1",
    "kubernetes": "kubernetes",
}  # fmt: skip


def make_providers(
    offers: Sequence[Offer], cluster: Callable[[], str], options: Mapping[str, Options]
) -> dict[str, Provider]:
    """By name; each is made when it is first asked something.

    Args:
        offers: of the catalogue.
        cluster: what machines are tagged with, once that is known.
        options: by provider.

    Raises:
        FailedPreconditionError: one is not known, or what it needs is not installed.
    """
    made: dict[str, Provider] = {}
    for name in sorted({each.provider for each in offers}):
        maker = MAKERS.get(name)
        if maker is None:
            raise FailedPreconditionError(
                f"the catalogue names provider {name!r}; known are {', '.join(sorted(MAKERS))}"
            )
        mine = [each for each in offers if each.provider == name]
        try:
            if name in PACKAGES:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # Google's, of coming versions
                    importlib.import_module(PACKAGES[name])
        except ImportError as error:
            raise FailedPreconditionError(
                f"provider {name} needs a package that is not installed ({error.name}): "
                + install_command(name)
            ) from error
        made[name] = Guarded(
            name, partial(_make, maker, cluster, options.get(name, {}), mine)
        )  # fmt: skip
    return made


def _make(
    maker: Maker, cluster: Callable[[], str], options: Options, offers: Sequence[Offer]
) -> Provider:
    return maker(cluster(), options, offers)
