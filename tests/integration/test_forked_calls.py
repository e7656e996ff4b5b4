"""Calls of processes made by fork() from one that uses gRPC: a relay makes them (ADR 0190).

Each test forks this very process; the child answers with JSON through a pipe and `os._exit`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from hyper import _transport
from hyper._forked import RelayChannel
from hyper._relay_process import current_relay
from hyper.client import Client
from hyper.config import SCHEDULER
from hyper.errors import DeadlineError, HyperError, InvalidArgumentError, UnavailableError
from tests.support.echo_service import caller
from tests.support.servers import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
FORKS = 6
WAIT_S = 40.0

# later Pythons warn of what these tests are about
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.timeout(120),
]


class EchoStub:
    """What a generated stub is."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.Unary = caller(channel, "Unary")
        self.Stream = caller(channel, "Stream")
        self.Upload = caller(channel, "Upload")
        self.Chat = caller(channel, "Chat")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An echo service of a process of its own."""
    folder = tmp_path_factory.mktemp("echo")
    ready = folder / "ready.json"
    command = [
        "env", f"HYPER_ECHO__READY_FILE={ready}", "HYPER_ECHO__LISTEN=127.0.0.1:0",
        f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.support.echo_service",
    ]  # fmt: skip
    server = ServerProcess("echo service", command, folder, folder / "echo.log")
    server.start(ready.exists)
    yield json.loads(ready.read_text())["address"]
    server.kill()


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    """A client that this process has called with."""
    with Client(address, patience_s=20.0) as made:
        assert unary(made, "echo parent") == "echo parent"
        yield made


def unary(client: Client, text: str, **options: Any) -> str:
    answer = client.call(SCHEDULER, EchoStub, "Unary", StringValue(value=text), **options)
    assert isinstance(answer.value, str)
    return answer.value


def stream(client: Client, text: str) -> Iterator[str]:
    for answer in client.stream(SCHEDULER, EchoStub, "Stream", StringValue(value=text)):
        yield answer.value


def failure(client: Client, text: str, **options: Any) -> dict[str, Any]:
    """All that is known of the error of a call."""
    with pytest.raises(HyperError) as caught:
        unary(client, text, **options)
    return {"class": type(caught.value).__name__, **vars(caught.value)}


@dataclass(frozen=True, slots=True)
class Forked:
    """A child made by fork(), which has not answered yet."""

    pid: int
    answers: int

    def answer(self) -> Any:
        """The next thing that the child said."""
        assert select.select([self.answers], [], [], WAIT_S)[0], "the child does not answer"
        line = b""
        while not line.endswith(b"\n"):
            part = os.read(self.answers, 1)
            assert part, "the child ended without an answer"
            line += part
        kind, value = json.loads(line)
        assert kind == "fine", value
        return value


@contextmanager
def forked(act: Callable[[Callable[[Any], None]], Any]) -> Iterator[Forked]:
    """Run `act` in a fork of this process; it may say things before it returns the last one."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)

        def say(value: Any, kind: str = "fine") -> None:
            os.write(writing, json.dumps((kind, value)).encode() + b"\n")

        try:
            say(act(say))
        except BaseException:  # noqa: BLE001  (pytest must never go on in the child)
            say(traceback.format_exc(), "failed")
        os._exit(0)
    os.close(writing)
    try:
        yield Forked(pid, reading)
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def in_fork(act: Callable[[], Any]) -> Any:
    """What `act` returns in a fork of this process."""
    with forked(lambda _: act()) as child:
        return child.answer()


def wait_for_end(descriptor: int) -> None:
    """Wait for the end of a process by its pidfd."""
    assert select.select([descriptor], [], [], WAIT_S)[0], "it has not ended"
    os.close(descriptor)


def test_forks_while_a_channel_connects(address: str, client: Client) -> None:
    for number in range(FORKS):
        options = [*_transport.OPTIONS, ("test.number", number)]  # shares no connection
        with grpc.insecure_channel(address, options=options) as connecting:
            pending = caller(connecting, "Unary").future(StringValue(value="echo"), timeout=WAIT_S)
            assert in_fork(lambda: unary(client, "echo child")) == "echo child"
            assert pending.result().value == "echo"


def test_forks_while_another_thread_calls(client: Client) -> None:
    ending = threading.Event()

    def busy() -> None:
        while not ending.is_set():
            unary(client, "echo " + "x" * 1000)

    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(busy)
        try:
            for _ in range(FORKS):
                assert in_fork(lambda: unary(client, "echo child")) == "echo child"
        finally:
            ending.set()
        calling.result()


def test_a_lock_that_another_thread_holds_is_free_in_the_child(client: Client) -> None:
    holding, ending = threading.Event(), threading.Event()

    def hold() -> None:
        with client._lock:
            holding.set()
            ending.wait()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(hold)
        try:
            assert holding.wait(WAIT_S)
            assert in_fork(lambda: unary(client, "echo child")) == "echo child"
        finally:
            ending.set()


def test_errors_are_the_same(client: Client) -> None:
    for text in ("raise QUOTA_EXCEEDED", "raise NOT_FOUND"):
        assert in_fork(lambda text=text: failure(client, text)) == failure(client, text)


def test_a_deadline_is_the_same(client: Client) -> None:
    options = {"timeout_s": 0.2, "patience_s": 0.0}
    mine = failure(client, "wait", **options)
    theirs = in_fork(lambda: failure(client, "wait", **options))
    for error in (mine, theirs):  # gRPC has several wordings for it
        assert "Deadline Exceeded" in error.pop("message")
    assert mine["class"] == DeadlineError.__name__
    assert theirs == mine


def test_a_stopped_relay_does_not_stop_its_process(client: Client) -> None:
    def act() -> list[str]:
        unary(client, "echo")
        os.kill(current_relay().pid, signal.SIGSTOP)
        large = "echo " + "x" * 2_000_000  # more than the socket takes
        errors = [
            failure(client, text, timeout_s=0.2, patience_s=0.0)["class"]
            for text in ("echo", large)
        ]
        return [*errors, unary(client, "echo again")]

    assert in_fork(act) == [DeadlineError.__name__] * 2 + ["echo again"]


def test_a_slow_call_delays_no_other(client: Client) -> None:
    def act() -> list[bool]:
        unary(client, "echo")
        slow = threading.Thread(target=failure, args=(client, "wait"), daemon=True)
        slow.start()
        while not current_relay()._inboxes:
            assert slow.is_alive()
        texts = [f"echo {number} " + "x" * 100_000 for number in range(40)]
        with ThreadPoolExecutor(8) as pool:
            same = list(pool.map(lambda text: unary(client, text), texts)) == texts
        return [same, slow.is_alive()]

    assert in_fork(act) == [True, True]


def test_streams_of_answers(client: Client) -> None:
    def act() -> list[Any]:
        whole = list(stream(client, "echo a"))
        flood = stream(client, "flood")
        some = [next(flood) for _ in range(100)]
        flood.close()  # type: ignore[attr-defined]
        with pytest.raises(HyperError) as caught:
            list(stream(client, "raise DRAINING"))
        return [whole, len(some), caught.value.reason, unary(client, "echo b")]

    assert in_fork(act) == [["first", "echo a"], 100, "DRAINING", "echo b"]


@pytest.mark.parametrize("kind", ["Upload", "Chat"])
def test_streams_of_requests_are_refused(client: Client, kind: str) -> None:
    def act() -> str:
        stub = client.stub(SCHEDULER, EchoStub)
        with pytest.raises(InvalidArgumentError) as caught:
            getattr(stub, kind)(iter([StringValue(value="echo")]), timeout=5)
        return str(caught.value)

    assert 'get_context("spawn")' in in_fork(act)


def test_a_relay_that_dies_is_replaced(client: Client) -> None:
    def act() -> list[Any]:
        unary(client, "echo")
        first = current_relay()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(failure, client, "wait", timeout_s=WAIT_S, patience_s=0.0)
            while not first._inboxes:
                assert not waiting.done()
            os.kill(first.pid, signal.SIGKILL)
            error = waiting.result()
        return [error["class"], error["message"], unary(client, "echo"), first.pid]

    kind, message, answer, pid = in_fork(act)
    assert (kind, answer) == (UnavailableError.__name__, "echo")
    assert "relay of this forked process ended (exit code -9)" in message
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # it was waited for


def test_a_relay_that_cannot_be_started(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    error = in_fork(lambda: failure(client, "echo", patience_s=0.0))
    assert error["class"] == UnavailableError.__name__
    assert "cannot be started" in error["message"]


def test_a_relay_ends_with_its_process(client: Client) -> None:
    def act(say: Callable[[Any], None]) -> None:
        unary(client, "echo")
        say(current_relay().pid)
        signal.pause()

    with forked(act) as child:
        relay = os.pidfd_open(child.answer())
        os.kill(child.pid, signal.SIGKILL)
        wait_for_end(relay)


def test_a_fork_of_a_fork_has_its_own_relay(client: Client) -> None:
    def act(say: Callable[[Any], None]) -> None:
        unary(client, "echo")
        say(current_relay().pid)

        def inner(say_inner: Callable[[Any], None]) -> None:
            say_inner([unary(client, "echo inner"), current_relay().pid])
            signal.pause()

        with forked(inner) as grandchild:
            say([grandchild.pid, *grandchild.answer()])
            say(unary(client, "echo outer"))
            signal.pause()

    with forked(act) as child:
        first = os.pidfd_open(child.answer())
        pid, answer, second = child.answer()
        assert answer == "echo inner"
        assert child.answer() == "echo outer"
        grandchild, second_end = os.pidfd_open(pid), os.pidfd_open(second)
        os.kill(child.pid, signal.SIGKILL)
        try:
            wait_for_end(first)  # although the grandchild, made by a fork, lives on
            assert not select.select([grandchild, second_end], [], [], 0)[0]
        finally:
            os.kill(pid, signal.SIGKILL)
            os.close(grandchild)
        wait_for_end(second_end)


def test_signals_and_prints_do_not_reach_the_relay(client: Client, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('not a frame', flush=True)\n")

    def act() -> list[Any]:
        os.environ["PYTHONPATH"] = str(tmp_path)
        unary(client, "echo")
        relay = current_relay()
        apart = os.getsid(relay.pid) != os.getsid(0)
        os.kill(relay.pid, signal.SIGINT)
        return [apart, unary(client, "echo"), current_relay() is relay]

    assert in_fork(act) == [True, "echo", True]


class Metadata(grpc.GenericRpcHandler):
    """Answers every call with its metadata, as JSON."""

    def service(self, details: Any) -> Any:
        pairs = sorted((key, repr(value)) for key, value in details.invocation_metadata)
        text = json.dumps(dict(pairs)).encode()
        return grpc.unary_unary_rpc_method_handler(lambda request, context: text)


def test_the_token_and_metadata_travel(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    monkeypatch.delenv("HYPER_TOKEN", raising=False)
    monkeypatch.setenv("HYPER_TOKEN_FILE", str(file))
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Metadata()])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()

    def act() -> list[Any]:
        found = []
        with _transport.channel([address]) as channel:
            assert isinstance(channel, RelayChannel)
            call = channel.unary_unary("/any/Method")
            for text in ("first", "second"):
                file.write_text(text)
                seen = json.loads(call(b"", timeout=10, metadata=(("x-bin", b"\x00\xff"),)))
                found += [seen["authorization"], seen["x-bin"]]
            file.unlink()
            with pytest.raises(InvalidArgumentError) as caught:
                call(b"", timeout=10)
            os.environb[b"HYPER_TOKEN"] = b"\xff"
            with pytest.raises(UnicodeEncodeError):
                call(b"", timeout=10)
        with pytest.raises(ValueError, match="closed"):
            call(b"", timeout=10)
        return [*found, str(caught.value)]

    try:
        *found, refused = in_fork(act)
    finally:
        server.stop(None).wait()
    assert found == ["'Bearer first'", repr(b"\x00\xff"), "'Bearer second'", repr(b"\x00\xff")]
    assert "HYPER_TOKEN_FILE" in refused


def test_who_has_not_used_grpc_needs_no_relay(address: str) -> None:
    code = (
        "import os\n"
        "from hyper import _transport\n"
        "def kind():\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        f"        made = type(_transport.channel(['{address}'])).__name__\n"
        "        os._exit(7 if made == 'RelayChannel' else 5)\n"
        "    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "before = kind()\n"
        f"with _transport.channel(['{address}']):\n"
        "    print(before, kind())\n"
    )
    assert run_python(code).stdout == "5 7\n"


def test_grpc_starts_no_threads_in_a_child(address: str) -> None:
    code = (
        "import os\n"
        "from hyper.client import Client\n"
        "from tests.integration.test_forked_calls import unary\n"
        "assert 'GRPC_ENABLE_FORK_SUPPORT' not in os.environ\n"
        f"with Client('{address}') as client:\n"
        "    unary(client, 'echo')\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        threads = len(os.listdir('/proc/self/task'))\n"
        "        print(threads, unary(client, 'echo child'), flush=True)\n"
        "        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
    )
    assert run_python(code).stdout == "1 echo child\n"


@pytest.mark.parametrize(
    ("first", "setting", "warns"),
    [("hyper", None, False), ("grpc", None, True), ("grpc", "0", False), ("hyper", "1", False)],
)
def test_grpc_imported_before_hyper(first: str, setting: str | None, warns: bool) -> None:
    code = (
        f"import os, {first}\n"
        "from hyper import _transport\n"
        "_transport._forked = True\n"
        "_transport.channel(['127.0.0.1:1'])\n"
        "print(os.environ.get('GRPC_ENABLE_FORK_SUPPORT'))\n"
    )
    done = run_python(code, setting)
    assert done.stdout == f"{setting}\n"
    assert ("gRPC was imported before hyper" in done.stderr) == warns


def test_a_relay_imports_little() -> None:
    code = (
        "import sys, hyper._relay\n"
        "print([name for name in ('numpy', 'google.protobuf', 'hyper.client') "
        "if name in sys.modules])\n"
    )
    assert run_python(code).stdout == "[]\n"


def run_python(code: str, setting: str | None = None) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that has run `code`, with a setting of gRPC for forks."""
    environment = dict(os.environ)
    environment.pop("GRPC_ENABLE_FORK_SUPPORT", None)
    if setting is not None:
        environment["GRPC_ENABLE_FORK_SUPPORT"] = setting
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment
    )
