"""The catalogue of offers: YAML with a date, every mistake refused with its line and key.

version: 1
as_of: 2026-11-01
offers:
  - name: t4-1a
    provider: aws
    cloud: aws
    region: us-east-1
    zone: us-east-1a
    instance_type: g4dn.xlarge
    cpus: 4
    memory: 16GiB
    gpu: T4
    gpu_count: 1
    on_demand: 0.526            # USD an hour
    spot: 0.158
    egress: 0.09                # USD a GB between it and storage; leave it out within one region
    slots: 4
    options: {image: ami-0123}
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

from hyper.errors import InvalidArgumentError
from hyper_scheduler.placement.offers import Offer
from hyper_scheduler.positioned import Node, fail, read
from hyper_scheduler.providers.options import wrong_option
from hyper_scheduler.readers import amount_of_memory, integer, mapping, number, strings, text

_OFFER_KEYS = (
    "name", "provider", "cloud", "region", "zone", "instance_type", "cpus", "memory", "gpu",
    "gpu_count", "on_demand", "spot", "egress", "slots", "max", "options",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
MAX_USD_H = 10_000.0
OLD_DAYS = 90  # prices that are older are warned of


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Offers as they were on a day."""

    as_of: date
    offers: tuple[Offer, ...]

    def age(self, today: date) -> str:
        """A warning, if its prices are old or of a day to come; "" if they are not."""
        days = (today - self.as_of).days
        if days > OLD_DAYS:
            return (
                f"the prices of the catalogue are of {self.as_of}, {days} days ago: compare them "
                "with the providers', and set `as_of`"
            )
        if days < -1:  # it may be tomorrow elsewhere
            return f"the prices of the catalogue are of {self.as_of}, which is to come"
        return ""

    def offer(self, name: str) -> Offer | None:
        """By name."""
        return next((each for each in self.offers if each.name == name), None)


def parse_catalogue(content: str) -> Catalogue:
    """Read and check a catalogue.

    Raises:
        InvalidArgumentError: with `line` and `key` in its metadata.
    """
    try:
        return _parse(content)
    except InvalidArgumentError as error:  # the reader is that of recipes
        raise InvalidArgumentError(
            f"catalogue of offers: {error.message.removeprefix('recipe: ')}",
            metadata=error.metadata,
        ) from error


def _parse(content: str) -> Catalogue:
    root = read(content, what="catalogue", needs="`as_of` and `offers`")
    top = mapping(root, ("version", "as_of", "offers"))
    if "version" in top and top["version"].value != 1:
        top["version"].fail("only version 1 is known; write `version: 1`")
    for key in ("as_of", "offers"):
        if key not in top:
            fail(f"`{key}` is missing", line=root.line, key=key)
    try:
        as_of = date.fromisoformat(text(top["as_of"]))
    except ValueError:
        top["as_of"].fail("expected the day of these prices, such as 2026-11-01")
    nodes = top["offers"].value
    if not isinstance(nodes, list) or not nodes:
        top["offers"].fail("expected a list with at least one offer")
    offers = tuple(map(_offer, nodes))
    names = [each.name for each in offers]
    for node, name in zip(nodes, names, strict=True):
        if names.count(name) > 1:
            node.fail(f"two offers are named {name!r}")
    return Catalogue(as_of, offers)


def _offer(node: Node) -> Offer:
    fields = mapping(node, _OFFER_KEYS)
    for key in ("name", "provider"):
        if key not in fields:
            node.fail(f"`{key}` is missing")
    given = {key: text(fields[key]) for key in
             ("name", "provider", "cloud", "region", "zone", "instance_type", "gpu")
             if key in fields}  # fmt: skip
    for key, value in given.items():
        if not _NAME.match(value):
            fields[key].fail(f"{value[:40]!r} is not a name; use letters, digits, '.', '_', '-'")
    prices = {key: number(fields[key], 0, MAX_USD_H) for key in ("on_demand", "spot")
              if key in fields}  # fmt: skip
    if not prices:
        node.fail("`on_demand` or `spot` is missing: the price in USD an hour")
    options = strings(fields["options"]) if "options" in fields else {}
    option, problem = wrong_option(given["provider"], options)
    if problem:
        where = fields.get("options", node)
        if option and isinstance(where.value, dict):
            where = where.value[option]
        where.fail(problem)
    gpus = integer(fields["gpu_count"], 0, 1024) if "gpu_count" in fields else int("gpu" in fields)
    return Offer(
        **given,
        cpus=number(fields["cpus"], 0.01, 100_000) if "cpus" in fields else 1.0,
        memory_bytes=amount_of_memory(fields["memory"]) if "memory" in fields else 0,
        gpus=gpus,
        on_demand_usd_h=prices.get("on_demand"),
        spot_usd_h=prices.get("spot"),
        egress_usd_gb=number(fields["egress"], 0, 100) if "egress" in fields else 0.0,
        slots=integer(fields["slots"], 1, 4096) if "slots" in fields else 1,
        most=integer(fields["max"], 0, 1_000_000) if "max" in fields else 1_000,
        options=options,
    )
