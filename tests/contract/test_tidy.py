"""Rules of the house that no linter knows."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path
    for folder in ("clients", "services", "examples", "benchmarks", "protos")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "gen" not in path.relative_to(ROOT).parts
]
MAX_LINES = 600
SERVED = ["hyper_scheduler", "hyper_storage", "hyper_inference", "hyper_matcher", "hyper_worker"]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_module_is_too_long() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX)\b")
    assert [relative(path) for path in SOURCES if marks.search(path.read_text())] == []


def test_no_pickle() -> None:
    """Nothing from storage or the wire is ever unpickled."""
    loads = re.compile(r"\bpickle\.loads?\(|allow_pickle=True|torch\.load\((?!.*weights_only=True)")
    assert [relative(path) for path in SOURCES if loads.search(path.read_text())] == []


@pytest.mark.parametrize("module", [*(f"{name}.__main__" for name in SERVED), "hyper.cli.main"])
def test_the_demo_path_imports_no_torch(module: str) -> None:
    code = (
        f"import sys, {module}, hyper_matcher.jobs, hyper_matcher.job_report\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


UNTRACED = """\
import asyncio, sys
import grpc, grpc.aio
from google.protobuf.wrappers_pb2 import StringValue
from hyper import _transport
from hyper_servicekit import tracing
from hyper_servicekit.interceptor import CallInterceptor
from tests.support.echo_service import Echo, add_echo, caller
async def main():
    server = grpc.aio.server(interceptors=[CallInterceptor()])
    add_echo(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for kind in ("Unary", "Stream"):
            call = caller(channel, kind)(
                StringValue(value="echo a"), timeout=10, metadata=_transport.call_metadata()
            )
            print((await call).value if kind == "Unary" else (await call.read()).value)
    await server.stop(0)
asyncio.run(main())
assert tracing.current() is None and tracing.traceparent("t", "1.1") == ""
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


@pytest.mark.parametrize("module", [*(f"{name}.__main__" for name in SERVED), "hyper.cli.main"])
def test_without_traces_nothing_of_opentelemetry_is_loaded(module: str) -> None:
    """Off, they cost a look at a variable: neither a service nor a call loads anything for them."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}\n{UNTRACED}"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["echo a", "first", "[]"]


def test_the_demo_path_installs_no_torch() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]

    def closure(name: str) -> set[str]:
        found = set()
        for requirement in extras[name]:
            inner = re.fullmatch(r"hyper-dl\[(.+)\]", requirement)
            if inner is None:
                found.add(re.split(r"[<>=!~\[ ]", requirement)[0])
            else:
                for part in inner[1].split(","):
                    found |= closure(part)
        return found

    assert "torch" not in closure("local")
    assert "torch" in closure("dev")


def test_every_pinned_package_has_one_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", pin) for pin in pins), pins
