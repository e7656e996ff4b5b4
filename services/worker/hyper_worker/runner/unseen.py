"""What programs of the agent's own user may not see of it.

Without isolation tasks are processes of the agent's user, and Linux lets these read one another:
memory, environment, open files. The agent's hold a token that is good for every tenant.
`hide_agent` closes that, except from programs with CAP_SYS_PTRACE, as root's are. It hides the
agent alone: tasks of one user are open to each other, and so are files of that user.
"""

from __future__ import annotations

import ctypes
import os

from hyper import _transport

_PR_SET_DUMPABLE = 4


def hide_agent() -> None:
    """From now on no process of our user reads us, and those that we start get no token of ours.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    _transport.keep_token()
