"""Reports that the scheduler has not acknowledged: kept, numbered, sent again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

from hyper_worker.core.model import Key, Outcome, Status

BATCH_MAX = 2_000
BATCH_BYTES_MAX = 1 << 20  # gRPC refuses messages over 4 MiB; a status holds at most 65 KiB
_STATUS_BYTES = 128  # of a status, beside its texts


class Reports:
    """Statuses on their way up.

    Batches carry sequence numbers that grow over the life of the agent, not of a connection; an
    acknowledgement covers a batch and all before it. After a reconnect everything that was not
    acknowledged goes up again, in the same order.
    """

    def __init__(self) -> None:
        self._fresh: deque[Status] = deque()
        self._started: dict[Key, Status] = {}  # that have not been sent
        self._sent: deque[tuple[int, tuple[Status, ...]]] = deque()
        self._again = 0  # batches of _sent that this connection has not carried yet
        self._sequence = 0
        self.waiting = 0  # statuses not acknowledged yet

    @property
    def empty(self) -> bool:
        """Whether everything has been acknowledged."""
        return self.waiting == 0

    def ended(self) -> Iterator[Key]:
        """Attempts whose end has not been acknowledged."""
        for statuses in (*(batch for _, batch in self._sent), tuple(self._fresh)):
            for status in statuses:
                if status.outcome is not Outcome.RUNNING:
                    yield status.key

    def add(self, status: Status) -> None:
        """Queue a status; that an attempt runs is not worth saying once it has ended."""
        self.waiting += 1
        if self._started.pop(status.key, None) is not None:
            self.waiting -= 1
        if status.outcome is Outcome.RUNNING:
            self._started[status.key] = status
        else:
            self._fresh.append(status)

    def reconnected(self) -> None:
        """What was sent over the last connection may be lost: send it again first."""
        self._again = len(self._sent)

    def next_batch(self) -> tuple[int, tuple[Status, ...]] | None:
        """The next (sequence, statuses) to send, or None."""
        if self._again:
            batch = self._sent[len(self._sent) - self._again]
            self._again -= 1
            return batch
        statuses = list(islice(self._started.values(), BATCH_MAX))
        for status in statuses:
            del self._started[status.key]
        if not self._fresh and not statuses:
            return None
        size_bytes = sum(map(_size_bytes, statuses))
        while self._fresh and len(statuses) < BATCH_MAX and size_bytes < BATCH_BYTES_MAX:
            statuses.append(self._fresh.popleft())
            size_bytes += _size_bytes(statuses[-1])
        self._sequence += 1
        batch = (self._sequence, tuple(statuses))
        self._sent.append(batch)
        return batch

    def acknowledged(self, sequence: int) -> None:
        """Drop what is durable; a number never sent acknowledges nothing beyond what was."""
        while self._sent and self._sent[0][0] <= sequence:
            self.waiting -= len(self._sent.popleft()[1])
        self._again = min(self._again, len(self._sent))


def _size_bytes(status: Status) -> int:
    exit_ = status.exit
    texts = (status.key.task, exit_.message, exit_.result_json)
    return _STATUS_BYTES + sum(map(len, texts))  # ASCII but for messages
