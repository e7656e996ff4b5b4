"""What the last task of a job writes before it commits its session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hyper.context import TaskContext
from hyper.errors import FailedPreconditionError


@contextmanager
def before_commit(context: TaskContext) -> Iterator[None]:
    """Around the writes that come before the commit.

    A task that runs again may find that an earlier attempt has begun the commit: nothing can be
    written any more, and nothing need be. The rest of the body is skipped then; the commit, which
    is asked for again with the same request id, gets the earlier one's answer.
    """
    try:
        yield
    except FailedPreconditionError as error:
        if error.reason != "SESSION_CLOSED":
            raise
        context.log("an earlier attempt has begun the commit")
