"""The audit log: one line a change, of who made it, of what, and how it went.

Lines are of the logger `hyper.audit`, which no LOG_LEVEL silences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.message import Message

from hyper_servicekit.authorize import names
from hyper_servicekit.logs import AUDIT, get_logger
from hyper_servicekit.tokens import Claims

audit = get_logger(AUDIT)

_READS = ("Get", "List", "Watch", "Read", "Diff", "Match", "Plan", "Predict")
_READ_URLS = ("METHOD_GET", "METHOD_HEAD")
_TOO_MANY = ("AppendLog", "AppendLogs", "LeaseShards", "ReleaseShards")
# Told beside names: an array of a session, the id and the role of a token; never a value.
_FACTS = ("array", "id", "role")
_NAMES_MAX, _CHARS_MAX = 8, 300


@dataclass(slots=True)
class Said:
    """What a call has said so far.

    Args:
        request: of a stream the first one.
        response: of a call that has one.
    """

    request: Message | None = None
    response: Message | None = None


def is_change(method: str, request: Message | None = None) -> bool:
    """Whether a call changes anything; tasks' output apart, it is written to the audit log."""
    if method == "SignUrls":  # who has a URL to write with asks nobody any more
        return request is not None and _choice(request, "method") not in (
            "METHOD_GET",
            "METHOD_HEAD",
        )
    return not method.startswith(_READS) and method not in _TOO_MANY


def write(method: str, code: str, claims: Claims, said: Said) -> None:
    """One line; request id, tenant and subject are bound to the call's context already."""
    resources = list(dict.fromkeys(_resources(said)))
    facts: dict[str, object] = {
        name: value[:_CHARS_MAX]
        for message in (said.request, said.response)
        if message is not None
        for name in _FACTS
        if isinstance(value := getattr(message, name, None), str) and value
    }
    if len(resources) > _NAMES_MAX:
        facts["more_resources"] = len(resources) - _NAMES_MAX
    shown = [text[:_CHARS_MAX] for text in resources[:_NAMES_MAX]]
    audit.info("audit", method=method, code=code, token=claims.id, resources=shown, **facts)


def _resources(said: Said) -> Iterator[str]:
    """What the request names, then what the answer does: a workflow or session that was made."""
    if said.request is not None:
        yield from (text for _, text in names(said.request) if text)
    if said.response is not None:
        for _, value in said.response.ListFields():
            made = getattr(value, "name", None) if isinstance(value, Message) else None
            if isinstance(made, str) and made:
                yield made


def _choice(message: Message, field: str) -> str:
    """The name of an enum's value; "" for one that is not known here."""
    descriptor = message.DESCRIPTOR.fields_by_name[field]
    value = descriptor.enum_type.values_by_number.get(getattr(message, field))
    return "" if value is None else str(value.name)
