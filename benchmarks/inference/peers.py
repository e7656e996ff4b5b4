"""The peers' environment, `.venv-bench`: made once, pinned, and checked.

It sees the project's own packages too (torch and ONNX Runtime are used in the versions that the
project has); what only peers need is installed the first time it is asked for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-bench"
_SHOW = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in %r}))"


@dataclass(frozen=True, slots=True)
class Packages:
    """What is installed together.

    Args:
        pinned: versions by name.
        alone: without what they depend on (nnU-Net's nets ask for a torchvision that does not fit
            beside a torch for CPUs, and use none of it).
    """

    pinned: dict[str, str]
    alone: bool = False


OPENVINO = Packages({"openvino": "2026.4.0"})
TENSORFLOW = Packages({"tensorflow-cpu": "2.21.0"})
ZOO = Packages(
    {"dynamic-network-architectures": "0.4.4", "einops": "0.8.2", "monai": "1.6.1"}, alone=True
)


def ensure_python() -> Path:
    """The interpreter of `.venv-bench`, which sees the project's packages."""
    python = FOLDER / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
    mine = FOLDER / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    link = mine / "site-packages" / "hyper-benchmarks.pth"
    # addsitedir, not the bare path: the project's own packages are found by .pth files there.
    link.write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return python


def ensure(wanted: Iterable[Packages]) -> str:
    """Install what is missing; why it cannot be, or "" if all is there."""
    python = ensure_python()
    for packages in wanted:
        if _versions(python, packages) == packages.pinned:
            continue
        names = [f"{name}=={version}" for name, version in packages.pinned.items()]
        command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        command += [*(["--no-deps"] if packages.alone else []), *names]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"pip cannot install {', '.join(names)}: {done.stderr.strip()[-200:]}"
    return ""


def _versions(python: Path, packages: Packages) -> dict[str, str] | None:
    done = subprocess.run(
        [str(python), "-c", _SHOW % list(packages.pinned)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return dict(json.loads(done.stdout)) if done.returncode == 0 else None
