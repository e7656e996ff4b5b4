"""Make the Python stubs: the only way they are made.

Runs grpc_tools.protoc and mypy-protobuf at pinned versions in a virtual environment of its own
(`.venv-protos`), because generated code refuses a runtime older than its generator.

Usage: python protos/generate.py [--out DIR]     (DIR defaults to protos/gen)
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
TOOLS = ("grpcio-tools==1.76.0", "mypy-protobuf==3.7.0", "setuptools<81")


def tools_python() -> Path:
    """The interpreter that has the generator's tools, made on first use."""
    folder = ROOT.parent / ".venv-protos"
    python = folder / "bin" / "python"
    stamp = folder / "tools.txt"
    if not stamp.exists() or stamp.read_text() != "\n".join(TOOLS):
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *TOOLS], check=True)
        stamp.write_text("\n".join(TOOLS))
    return python


def generate(out: Path) -> None:
    """Write stubs for every .proto below this folder into `out`."""
    python = tools_python()
    protos = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("hyperapi/**/*.proto"))
    out.mkdir(parents=True, exist_ok=True)
    for old in out.rglob("*_pb2*"):
        old.unlink()
    bin_folder = python.parent
    subprocess.run(
        [
            python, "-m", "grpc_tools.protoc", f"-I{ROOT}",
            f"--plugin=protoc-gen-mypy={bin_folder / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={bin_folder / 'protoc-gen-mypy_grpc'}",
            f"--python_out={out}", f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}", *protos,
        ],
        cwd=ROOT, check=True,
    )  # fmt: skip
    for folder in [out / "hyperapi", *(p for p in (out / "hyperapi").rglob("*") if p.is_dir())]:
        if folder.name != "__pycache__":
            (folder / "__init__.py").touch()
            (out / "hyperapi" / "py.typed").touch()


def main() -> int:
    """Generate, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "gen")
    generate(parser.parse_args().out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
