"""Resource names: the wire's paths and the short addresses that people write.

A path is `tenants/{t}/datasets/{d}/versions/{v}/arrays/{a}`; people write `t/d[@v][/array]`.
Every part is checked here, so that no name can leave its place in etcd or in a bucket.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hyper.errors import InvalidArgumentError

_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?\Z")
MAX_PATH_BYTES = 1024


EVERY_TENANT = "tenants/-"  # the parent of operators' lists; no tenant can have this name


def check_part(text: str, what: str) -> str:
    """Return `text` if it can be one part of a resource name.

    Raises:
        InvalidArgumentError: INVALID_NAME.
    """
    if not _PART.match(text) or ".." in text:
        raise InvalidArgumentError(
            f"{what} {text[:80]!r} is not a valid name: use letters, digits, '.', '_' and '-', "
            "at most 128 of them, starting with a letter or digit, without '..'",
            reason="INVALID_NAME",
            field=what,
        )
    return text


_PLAIN_PART = r"(?!\.{1,2}(?:/|\Z))[ -.0-\[\]-~]+"
_PLAIN_PATH = re.compile(rf"{_PLAIN_PART}(?:/{_PLAIN_PART})*\Z")


def check_path(path: str) -> str:
    """Return `path` if it is a safe relative file path: normalised, '/'-separated, printable.

    Raises:
        InvalidArgumentError: INVALID_NAME.
    """
    if _PLAIN_PATH.match(path) and len(path) <= MAX_PATH_BYTES:
        return path  # nearly all are; the rest is looked at closely
    parts = path.split("/")
    bad = (
        not path
        or len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES
        or any(part in ("", ".", "..") for part in parts)
        or any(not c.isprintable() for c in path)
        or "\\" in path
    )
    if bad:
        raise InvalidArgumentError(
            f"{path[:80]!r} is not a valid file path: use a relative path without '..', empty "
            "parts, backslashes or control characters",
            reason="INVALID_NAME",
            field="path",
        )
    return path


def is_tag(text: str) -> bool:
    """Whether `text` can name a version: a part that begins with a letter, and is not "head"."""
    return bool(_PART.match(text)) and ".." not in text and text[0].isalpha() and text != "head"


@dataclass(frozen=True, slots=True)
class Address:
    """What `tenant/name[@version][/array]` says."""

    tenant: str
    dataset: str
    version: int | str | None = None  # a number or a tag
    array: str | None = None

    @property
    def dataset_name(self) -> str:
        """The dataset's resource name."""
        return f"tenants/{self.tenant}/datasets/{self.dataset}"

    def __str__(self) -> str:
        version = "" if self.version is None else f"@{self.version}"
        array = "" if self.array is None else f"/{self.array}"
        return f"{self.tenant}/{self.dataset}{version}{array}"


def parse_address(text: str) -> Address:
    """Read `[hyper://]tenant/name[@version][/array]`; an array's name may hold '/'.

    Raises:
        InvalidArgumentError: INVALID_NAME.
    """
    parts = text.removeprefix("hyper://").split("/")
    if len(parts) < 2:
        raise InvalidArgumentError(
            f"{text[:80]!r} is not an address: write tenant/name[@version][/array]",
            reason="INVALID_NAME",
        )
    tenant, dataset, *array = parts
    dataset, at, version_text = dataset.partition("@")
    version: int | str | None = None
    if at and is_tag(version_text):
        version = version_text
    elif at:
        if not version_text.isdecimal() or not 0 < int(version_text[:19]) < 2**63:
            raise InvalidArgumentError(
                f"{version_text[:80]!r} in {text[:80]!r} is no version: write 1 or more, or a tag",
                reason="INVALID_NAME",
            )
        version = int(version_text)
    for part in array:
        check_part(part, "array")
    return Address(
        check_part(tenant, "tenant"),
        check_part(dataset, "dataset"),
        version,
        "/".join(array) or None,
    )


def array_address(name: str) -> str:
    """`tenant/dataset@version/array` of an array's resource name, whose version it keeps."""
    _, tenant, _, dataset, _, version, _, array = name.split("/", 7)
    return f"{tenant}/{dataset}@{version}/{array}"
