"""Renew constraints.txt: the versions that `.[dev]` resolves to today, in a fresh environment.

Keeps protobuf at 6 (the generated code's runtime, so that users of the SDK are not forced to 7) and
grpcio at a release whose helper packages agree on it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMITS = ("protobuf<7", "types-protobuf<7", "grpcio<=1.81.1", "torch==2.13.0")
HEADER = (
    "# What the project is tested with: `pip install -c constraints.txt -e .[dev]`. "
    "Renewed by `make constraints`.\n"
)


def main() -> int:
    """Resolve and write the file."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "venv"
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        limits = Path(folder) / "limits.txt"
        limits.write_text("\n".join(LIMITS) + "\n")
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "-c", limits, f"{ROOT}[dev]"], check=True
        )
        frozen = subprocess.run(
            [python, "-m", "pip", "freeze", "--exclude", "hyper-dl"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    pins = []
    for line in frozen.splitlines():
        name, at, _ = line.partition(" @ ")
        pin = "torch==2.13.0" if at and name == "torch" else line
        pins.append(pin.partition("+")[0])  # a local build's label is not for others
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(sorted(pins)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
