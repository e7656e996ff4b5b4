"""Where the cluster is: `HYPER_ENDPOINT`, else what `hyper up` wrote into `HYPER_HOME`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hyper.errors import InvalidArgumentError, NoClusterError

CLUSTER_FILE = "cluster.json"
SCHEDULER = "scheduler"
STORAGE = "storage-gateway"
INFERENCE = "inference"
MATCHER = "matcher"

_OVERRIDES = {
    STORAGE: "HYPER_STORAGE_ENDPOINT",
    INFERENCE: "HYPER_INFERENCE_ENDPOINT",
    MATCHER: "HYPER_MATCHER_ENDPOINT",
}


def hyper_home() -> Path:
    """The folder of the local cluster: `HYPER_HOME`, by default `~/.hyper`."""
    return Path(os.environ.get("HYPER_HOME") or Path.home() / ".hyper")


def patience_s() -> float:
    """How long calls go on trying while a service is unreachable: `HYPER_PATIENCE_S`, else 30.

    Raises:
        InvalidArgumentError: it is not a number of seconds.
    """
    text = os.environ.get("HYPER_PATIENCE_S") or "30"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise InvalidArgumentError(f"HYPER_PATIENCE_S: {text[:80]!r} is not a number of seconds")
    return value


def split_endpoint(text: str, *, source: str = "endpoint") -> tuple[str, ...]:
    """Take "host:port[,host:port]" apart; `source` names it in the error.

    Raises:
        InvalidArgumentError: it is not of that form.
    """
    addresses = tuple(part.strip() for part in text.split(",") if part.strip())
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InvalidArgumentError(
                f"{source}: {address[:80]!r} is not an address: write host:port[,host:port]"
            )
    if not addresses:
        raise InvalidArgumentError(f"{source} is empty: write host:port[,host:port]")
    return addresses


def scheduler_addresses(endpoint: str | None = None) -> tuple[str, ...]:
    """The schedulers to call: `endpoint`, else `HYPER_ENDPOINT`, else the local cluster's.

    Raises:
        NoClusterError: there is no cluster to be found.
        InvalidArgumentError: what was found is not an address.
    """
    if endpoint is not None:
        return split_endpoint(endpoint)
    from_environment = os.environ.get("HYPER_ENDPOINT")
    if from_environment:
        return split_endpoint(from_environment, source="HYPER_ENDPOINT")
    path = hyper_home() / CLUSTER_FILE
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise NoClusterError(
            f"no cluster: {path} does not exist; run `hyper up` first, or set HYPER_ENDPOINT "
            "to a scheduler's host:port"
        ) from error
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"{path} cannot be read ({error}); run `hyper down`, then `hyper up`"
        ) from error
    text = facts.get("endpoint") if isinstance(facts, dict) else None
    if not isinstance(text, str):
        raise InvalidArgumentError(
            f"{path} names no endpoint; run `hyper down`, then `hyper up`, or set HYPER_ENDPOINT"
        )
    return split_endpoint(text, source=str(path))


def service_override(service: str) -> tuple[str, ...] | None:
    """The addresses of `service` if the environment names them, else None."""
    variable = _OVERRIDES.get(service)
    text = os.environ.get(variable) if variable else None
    return split_endpoint(text, source=str(variable)) if text else None
