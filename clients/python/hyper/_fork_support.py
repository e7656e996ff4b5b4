"""gRPC's own handling of forks, switched off for this process unless its user chose.

It starts gRPC's threads anew in every child, also in one that never calls gRPC, and they end some
of those children (ADR 0190). The choice is read when gRPC is first imported and never again.
"""

from __future__ import annotations

import os
import sys

_VARIABLE = "GRPC_ENABLE_FORK_SUPPORT"

came_too_late = False
"""Whether gRPC had been imported before `switch_off`, so that its handling is on."""

_is_ours = False


def switch_off() -> None:
    """To be called before gRPC is imported; `restore` afterwards."""
    global came_too_late, _is_ours
    if _VARIABLE in os.environ:
        return
    came_too_late = "grpc" in sys.modules
    if not came_too_late:
        os.environ[_VARIABLE] = "0"
        _is_ours = True


def restore() -> None:
    """gRPC has read it: programs that this process starts are not to inherit the choice."""
    global _is_ours
    if _is_ours:
        os.environ.pop(_VARIABLE, None)
        _is_ours = False
