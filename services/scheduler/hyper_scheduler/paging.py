"""Lists in pages: opaque tokens, bounded sizes."""

from __future__ import annotations

import base64

from hyper.errors import InvalidArgumentError

DEFAULT_PAGE_SIZE = 100


def page_size(asked: int, largest: int) -> int:
    """How many items a page gets."""
    if asked < 0:
        raise InvalidArgumentError(f"page_size is {asked}; write 0 or more", field="page_size")
    return min(asked or DEFAULT_PAGE_SIZE, largest)


def make_token(position: str) -> str:
    """An opaque token for the page that begins at `position`."""
    return base64.urlsafe_b64encode(position.encode()).decode()


def read_token(token: str) -> str:
    """What `make_token` was given; "" for the first page."""
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:  # not ASCII, not base64, not UTF-8
        raise _bad(token) from None


def read_index(token: str) -> int:
    """A token that stands for a number."""
    text = read_token(token)
    if not text:
        return 0
    if not text.isdecimal() or len(text) > 15:
        raise _bad(token)
    return int(text)


def _bad(token: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"page_token {token[:40]!r} did not come from an earlier answer", field="page_token"
    )
