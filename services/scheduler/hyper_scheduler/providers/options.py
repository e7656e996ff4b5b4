"""What an offer may tell its provider, checked when the catalogue is read and not at a launch.

What each option means stands at the top of the provider's module.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping

Check = Callable[[str], str]  # says what is expected instead; "": it is right

_MOST = 1e6


def _any(value: str) -> str:
    return ""


def _shell(value: str) -> str:
    try:
        shlex.split(value)
    except ValueError as error:
        return f"words as a shell has them ({error})"
    return ""


def _amount(value: str) -> str:
    try:
        good = 0 < float(value) < _MOST
    except ValueError:
        good = False
    return "" if good else "a number above 0"


def _whole(value: str) -> str:
    return "" if value.isdecimal() and int(value) > 0 else "a whole number above 0"


def _port(value: str) -> str:
    return "" if value.isdecimal() and 0 < int(value) < 65536 else "a port"


def _variables(value: str) -> str:
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    good = isinstance(found, dict) and all(
        isinstance(each, str | int | float) and "\0" not in f"{name}{each}" and name
        and "=" not in name for name, each in found.items()
    )  # fmt: skip
    return "" if good else 'a JSON mapping of variables to text, such as {"NAME": "value"}'


def _quantity(value: str) -> str:
    right = re.fullmatch(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?", value)
    return "" if right else "an amount as Kubernetes writes it, such as 2, 500m or 4Gi"


def _pairs(value: str) -> str:
    right = all("=" in each for each in value.split(",") if each.strip())
    return "" if right else "key=value, separated by commas"


_KNOWN: dict[str, dict[str, Check]] = {
    "aws": {"image": _any, "setup": _any, "key_name": _any, "instance_profile": _any},
    "docker": {"image": _any, "command": _shell, "network": _any, "cpus": _amount,
               "memory_bytes": _whole},
    "gcp": {"image": _any, "disk_gb": _whole, "setup": _any, "service_account": _any},
    "kubernetes": {"image": _any, "command": _shell, "cpus": _quantity, "memory_bytes": _quantity,
                   "gpus": _whole, "node_selector": _pairs, "tolerations": _any,
                   "service_account": _any},
    "process": {"environment": _variables},
    "slurm": {"partition": _any, "account": _any, "time": _any, "arguments": _shell,
              "python": _any},
    "ssh": {"hosts": _any, "user": _any, "port": _port, "identity": _any, "known_hosts": _any,
            "python": _any, "folder": _any},
}  # fmt: skip
_NEEDED: dict[str, tuple[str, ...]] = {
    "aws": ("image",), "docker": ("image",), "gcp": ("image",), "kubernetes": ("image",),
    "ssh": ("hosts",),
}  # fmt: skip


def wrong_option(provider: str, options: Mapping[str, str]) -> tuple[str, str]:
    """The first option that its provider could not use, and why; two empty texts: none.

    A provider that is not known has no options that are.
    """
    known = _KNOWN.get(provider)
    if known is None:
        return "", ""
    for name, value in options.items():
        if name not in known:
            return name, f"provider {provider} has no such option; known are {', '.join(known)}"
        if wanted := known[name](value):
            return name, f"{value[:80]!r} is not {wanted}"
    for name in _NEEDED.get(provider, ()):
        if not options.get(name):
            return "", f"provider {provider} needs the option `{name}`"
    return "", ""
