"""Run the commands of a page again and put what they say, and how long they took, below them.

python -m scripts.record_session docs/compose-session.md

Commands are the lines that begin with `$ ` in blocks marked `console`; all run in one shell, in
the repository's folder, until one fails.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINES = 14  # of a command's output that are kept: the first few and the last
FIRST = 4
WIDTH = 160
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "ended-with-status-"


class Shell:
    """One bash that remembers variables from command to command."""

    def __init__(self) -> None:
        self._bash = subprocess.Popen(
            ["bash"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, command: str) -> tuple[list[str], int]:
        """What it prints, of progress bars their end, and its exit status."""
        stdin, stdout = self._bash.stdin, self._bash.stdout
        assert stdin is not None and stdout is not None
        stdin.write(f"{{ {command}\n}} </dev/null\nprintf '\\n%s%s\\n' {_MARK} $?\n".encode())
        stdin.flush()
        lines: list[str] = []
        for raw in stdout:
            line = raw.decode(errors="replace").rstrip()
            if line.startswith(_MARK):
                return lines, int(line.removeprefix(_MARK))
            lines.append(line.rpartition("\r")[2])
        return lines, self._bash.wait()  # it has ended itself

    def close(self) -> None:
        """End it."""
        for stream in (self._bash.stdin, self._bash.stdout):
            if stream is not None:
                stream.close()
        self._bash.wait()


def shortened(lines: list[str]) -> list[str]:
    """What a reader wants of it; folders of this machine are not named."""
    kept = [
        line.replace(str(ROOT), ".").replace(str(Path.home()), "~")[:WIDTH]
        for line in lines if line
    ]  # fmt: skip
    if len(kept) <= LINES:
        return kept
    return [*kept[:FIRST], f"[{len(kept) - LINES} more lines]", *kept[FIRST - LINES :]]


def record(page: str, run: Callable[[str], tuple[list[str], int]]) -> tuple[str, int]:
    """The page with what its commands print now, and the exit status of the last that ran."""
    status = 0

    def block(found: re.Match[str]) -> str:
        nonlocal status
        said = ["```console"]
        for command in [each for each in found[1].splitlines() if each.startswith("$ ")]:
            said.append(command)
            if not status:
                began = time.monotonic()
                lines, status = run(command.removeprefix("$ "))
                failed = f", exit status {status}" if status else ""
                said += [*shortened(lines), f"# {time.monotonic() - began:.0f} s{failed}"]
        return "\n".join([*said, "```"])

    return _BLOCK.sub(block, page), status


def main() -> int:
    """Record the page that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    path: Path = parser.parse_args().page
    shell = Shell()
    try:
        page, status = record(path.read_text(), shell.run)
    finally:
        shell.close()
    path.write_text(page)
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
