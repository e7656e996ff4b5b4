"""Resource names of this service, taken apart and checked."""

from __future__ import annotations

from dataclasses import dataclass

from hyper.errors import InvalidArgumentError
from hyper.names import check_part, is_tag

HEAD = "head"
MAX_ARRAY_PARTS = 8
MAX_ARRAY_NAME = 256


@dataclass(frozen=True, slots=True)
class DatasetName:
    """tenants/{tenant}/datasets/{dataset}"""

    tenant: str
    dataset: str

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/datasets/{self.dataset}"


@dataclass(frozen=True, slots=True)
class VersionName:
    """A dataset's version: a number, or a tag, or else the newest."""

    dataset: DatasetName
    number: int | None
    tag: str = ""

    def __str__(self) -> str:
        return f"{self.dataset}/versions/{self.number or self.tag or HEAD}"


@dataclass(frozen=True, slots=True)
class TagName:
    """A dataset's tag."""

    dataset: DatasetName
    tag: str

    def __str__(self) -> str:
        return f"{self.dataset}/tags/{self.tag}"


@dataclass(frozen=True, slots=True)
class SessionName:
    """A dataset's session."""

    dataset: DatasetName
    session: str

    def __str__(self) -> str:
        return f"{self.dataset}/sessions/{self.session}"


@dataclass(frozen=True, slots=True)
class StoreName:
    """A tenant's store elsewhere."""

    tenant: str
    store: str

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/stores/{self.store}"


Parent = VersionName | SessionName


@dataclass(frozen=True, slots=True)
class ArrayName:
    """An array of a version or session."""

    parent: Parent
    array: str

    def __str__(self) -> str:
        return f"{self.parent}/arrays/{self.array}"


def parse_tenant(text: str) -> str:
    """The tenant of `tenants/{t}`."""
    kind, _, tenant = text.partition("/")
    if kind != "tenants":
        raise _wrong(text, "tenants/{tenant}")
    return check_part(tenant, "tenant")


def parse_store(text: str) -> StoreName:
    """Read `tenants/{t}/stores/{s}`."""
    parts = text.split("/")
    if len(parts) != 4 or parts[0] != "tenants" or parts[2] != "stores":
        raise _wrong(text, "tenants/{tenant}/stores/{store}")
    return StoreName(check_part(parts[1], "tenant"), check_part(parts[3], "store"))


def parse_dataset(text: str) -> DatasetName:
    """Read `tenants/{t}/datasets/{d}`."""
    parts = text.split("/")
    if len(parts) != 4 or parts[0] != "tenants" or parts[2] != "datasets":
        raise _wrong(text, "tenants/{tenant}/datasets/{dataset}")
    return DatasetName(check_part(parts[1], "tenant"), check_part(parts[3], "dataset"))


def parse_parent(text: str) -> Parent:
    """Read the name of a version or of a session."""
    parts = text.split("/")
    if len(parts) != 6 or parts[4] not in ("versions", "sessions"):
        raise _wrong(text, "tenants/{tenant}/datasets/{dataset}/versions/{version}")
    dataset = parse_dataset("/".join(parts[:4]))
    if parts[4] == "sessions":
        return SessionName(dataset, check_part(parts[5], "session"))
    if parts[5] in (HEAD, "-"):
        return VersionName(dataset, None)
    if is_tag(parts[5]):
        return VersionName(dataset, None, parts[5])
    if not parts[5].isascii() or not parts[5].isdecimal() or not 0 < int(parts[5][:19]) < 2**62:
        raise _wrong(text, "a version of 1 or more, a tag, or 'head'")
    return VersionName(dataset, int(parts[5]))


def parse_tag(text: str) -> TagName:
    """Read the name of a tag."""
    parts = text.split("/")
    if len(parts) != 6 or parts[4] != "tags" or not is_tag(parts[5]):
        raise _wrong(
            text,
            "tenants/{tenant}/datasets/{dataset}/tags/{tag}; a tag begins with a letter and "
            "is not 'head'",
        )
    return TagName(parse_dataset("/".join(parts[:4])), parts[5])


def parse_version(text: str) -> VersionName:
    """Read the name of a version."""
    parent = parse_parent(text)
    if not isinstance(parent, VersionName):
        raise _wrong(text, "tenants/{tenant}/datasets/{dataset}/versions/{version}")
    return parent


def parse_session(text: str) -> SessionName:
    """Read the name of a session."""
    parent = parse_parent(text)
    if not isinstance(parent, SessionName):
        raise _wrong(text, "tenants/{tenant}/datasets/{dataset}/sessions/{session}")
    return parent


def parse_array(text: str) -> ArrayName:
    """Read the name of an array of a version or session."""
    parent, slash, array = text.partition("/arrays/")
    if not slash:
        raise _wrong(text, ".../versions/{version}/arrays/{array}")
    return ArrayName(parse_parent(parent), check_array(array))


def check_array(name: str) -> str:
    """Return `name` if it can name an array: parts joined by '/'."""
    parts = name.split("/")
    if len(parts) > MAX_ARRAY_PARTS or len(name) > MAX_ARRAY_NAME:
        raise InvalidArgumentError(
            f"array {name[:80]!r} is too long or too deep: at most {MAX_ARRAY_PARTS} parts and "
            f"{MAX_ARRAY_NAME} characters",
            reason="INVALID_NAME",
            field="array",
        )
    for part in parts:
        check_part(part, "array")
    return name


def parse_task(text: str) -> str:
    """Return the name of a task if it is one: its parts are checked."""
    return _checked(text, ("tenants", "workflows", "experiments", "tasks"))


def parse_experiment(text: str) -> str:
    """Return the name of an experiment if it is one: its parts are checked."""
    return _checked(text, ("tenants", "workflows", "experiments"))


def _checked(text: str, kinds: tuple[str, ...]) -> str:
    parts = text.split("/")
    if len(parts) != 2 * len(kinds) or tuple(parts[::2]) != kinds:
        raise _wrong(text, "/".join(f"{kind}/{{{kind[0]}}}" for kind in kinds))
    for kind, part in zip(kinds, parts[1::2], strict=True):
        check_part(part, kind)
    return text


def _wrong(text: str, wanted: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{text[:120]!r} is not a name of the right kind: expected {wanted}",
        reason="INVALID_NAME",
        field="name",
    )
