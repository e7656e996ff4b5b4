"""Print what an extra of pyproject.toml needs of others: `python scripts/requirements.py worker`.

Images install this list in a layer of its own, which stays while only our code changes. Needs the
standard library alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_OWN = re.compile(r"hyper-dl\[([\w,-]+)\]\Z")


def requirements(project: dict[str, object], extras: list[str]) -> list[str]:
    """The requirements of the project and of `extras`, our own extras taken apart.

    Args:
        project: the table `project` of pyproject.toml.
        extras: names of extras.
    """
    base, optional = project["dependencies"], project["optional-dependencies"]
    assert isinstance(base, list) and isinstance(optional, dict)
    found: set[str] = set(base)
    waiting, seen = list(extras), set()
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in optional[extra]:
            if own := _OWN.match(requirement):
                waiting += own[1].split(",")
            else:
                found.add(requirement)
    return sorted(found)


def main() -> int:
    """Print the list, one a line."""
    path = Path(__file__).resolve().parent / "pyproject.toml"
    if not path.exists():  # in the repository; in an image they lie side by side
        path = path.parents[1] / "pyproject.toml"
    project = tomllib.loads(path.read_text())["project"]
    print("\n".join(requirements(project, sys.argv[1:])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
