"""The peers' environment, `.venv-bench`: made once, pinned, and checked.

Peers that the project itself uses (torch, ONNX Runtime) come from the environment that runs the
benchmark, in the versions that it has; the others are installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-bench"
PINNED = {"openvino": "2026.4.0"}
_SHOW = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in %r}))"


def ensure_peers() -> tuple[Path, str]:
    """An interpreter that has the peers, and why some are missing ("" if none is)."""
    python = FOLDER / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
    mine = FOLDER / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    link = mine / "site-packages" / "hyper-benchmarks.pth"
    # addsitedir, not the bare path: the project's own packages are found by .pth files there.
    link.write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    if _versions(python) == PINNED:
        return python, ""
    wanted = [f"{name}=={version}" for name, version in PINNED.items()]
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return python, f"pip cannot install {', '.join(wanted)}: {done.stderr.strip()[-200:]}"
    return python, ""


def _versions(python: Path) -> dict[str, str] | None:
    done = subprocess.run(
        [str(python), "-c", _SHOW % list(PINNED)], capture_output=True, text=True, check=False
    )
    return dict(json.loads(done.stdout)) if done.returncode == 0 else None
