"""How long to wait before the next try: exponential, with jitter, bounded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays grow by `factor` from `first_s` up to `max_s`.

    A thousand workers that lost the same scheduler must not come back at the same moment: the
    delay is drawn from the upper three quarters of its range.
    """

    first_s: float = 0.1
    max_s: float = 5.0
    factor: float = 2.0

    def delay_s(self, failures: int, uniform: float) -> float:
        """The delay after `failures` (1 or more) in a row; `uniform` is drawn from [0, 1)."""
        exponent = min(max(failures, 1) - 1, 64)
        full_s = min(self.first_s * self.factor**exponent, self.max_s)
        return full_s * (0.25 + 0.75 * uniform)
