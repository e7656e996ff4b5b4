"""A service as a real child process: what it answers, how it starts, fails and ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import urllib3
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hyper import _transport
from hyper._wire_errors import from_rpc_error
from hyper.errors import HyperError, InternalError, ResourceExhaustedError
from hyper_servicekit.tokens import Signer
from tests.support.echo_service import FULL_NAME, SECRET, caller
from tests.support.reflected import Reflected

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 20
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, slots=True)
class Child:
    process: subprocess.Popen[str]
    ready_file: Path
    log: Path

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.ready_file.read_text())
        return facts

    def channel(self) -> grpc.Channel:
        return _transport.channel([self.facts["address"]])

    def fetch(self, path: str) -> tuple[int, str]:
        with urllib3.PoolManager() as http:
            answer = http.request("GET", f"http://{self.facts['metrics_address']}{path}")
            return answer.status, answer.data.decode()

    def ended(self) -> tuple[int, str]:
        """Exit status and stderr, once it has ended."""
        status = self.process.wait(START_TIMEOUT_S)
        return status, self.log.read_text()


Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts echo services; they are gone at the end."""
    started: list[Child] = []

    def start_one(**settings: str) -> Child:
        number = len(started)
        ready = tmp_path / f"{number}.json"
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("HYPER_")},
            "HYPER_ECHO__READY_FILE": str(ready),
            **{f"HYPER_ECHO__{name.upper()}": value for name, value in settings.items()},
        }
        log = tmp_path / f"{number}.log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.echo_service"],
                cwd=ROOT, env=environment, stderr=stderr, text=True,
            )  # fmt: skip
        started.append(Child(process, ready, log))
        return started[-1]

    yield start_one
    for child in started:
        child.process.kill()
        child.process.wait()


@pytest.fixture
def running(start: Start) -> Child:
    return until_ready(start(log_format="json", instance="echo-1", drain_grace_s="15"))


def until_ready(child: Child) -> Child:
    """Wait for the ready file, or fail with the child's log."""
    wait_until(lambda: child.ready_file.exists() or child.process.poll() is not None)
    assert child.process.poll() is None, child.log.read_text()
    return child


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)  # between two looks at another process


def test_health_reflection_metrics(running: Child) -> None:
    facts = running.facts
    assert (facts["service"], facts["instance"]) == ("echo", "echo-1")
    assert facts["pid"] == running.process.pid
    with running.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", FULL_NAME):
            request = health_pb2.HealthCheckRequest(service=name)
            assert health.Check(request, timeout=10).status == SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection.ServerReflectionInfo(iter([question]), timeout=10)
        names = {service.name for service in answer.list_services_response.service}
        assert {FULL_NAME, "grpc.health.v1.Health"} <= names
        assert caller(channel, "Unary")(StringValue(value="echo a"), timeout=10).value == "echo a"
    assert running.fetch("/healthz") == (200, "ok\n")
    status, text = running.fetch("/metrics")
    assert status == 200
    assert 'hyper_rpc_total{code="OK",method="Unary",service="Echo"} 1.0' in text
    assert "hyper_rpc_duration_seconds_bucket" in text
    assert running.fetch("/else")[0] == 404


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_a_call_is_made_from_reflection_alone(running: Child, version: str) -> None:
    with running.channel() as channel:
        seen = Reflected(channel, version)
        health = "grpc.health.v1.Health"
        assert health in seen.services()
        assert seen.call(f"{health}/Check", {"service": FULL_NAME}) == {"status": "SERVING"}
        assert seen.call(f"{health}/Watch", {"service": FULL_NAME}) == {"status": "SERVING"}
        with pytest.raises(LookupError, match="no such symbol"):
            seen.call("nobody.knows.It/Unary", {})


def test_a_bug_is_logged_with_its_stack_and_request_id(running: Child) -> None:
    with running.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        caller(channel, "Unary")(
            StringValue(value="bug"), timeout=10, metadata=(("x-request-id", "find-me"),)
        )
    error = from_rpc_error(caught.value)
    assert type(error) is InternalError
    assert SECRET not in str(error)
    assert "find-me" in str(error)
    lines = [json.loads(line) for line in running.log.read_text().splitlines()]
    (line,) = [line for line in lines if line["event"] == "call failed"]
    assert (line["request_id"], line["service"], line["level"]) == ("find-me", "echo", "error")
    assert SECRET in line["exception"]
    assert "in act" in line["exception"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drain_finishes_calls_in_flight(running: Child, number: signal.Signals) -> None:
    with running.channel() as channel:
        stream = caller(channel, "Stream")(StringValue(value="wait here"), timeout=30)
        assert next(stream).value == "first"
        health = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=30
        )
        assert next(health).status == SERVING
        running.process.send_signal(number)
        assert next(health).status == NOT_SERVING
        health.cancel()
        assert [message.value for message in stream] == ["wait here"]
        status, log = running.ended()
    assert status == 0
    assert "draining" in log
    assert "Traceback" not in log


def test_a_call_that_never_ends_is_cut_after_the_grace(start: Start) -> None:
    child = until_ready(start(drain_grace_s="0.2"))
    with child.channel() as channel:
        requests: Future[StringValue] = Future()
        chat = caller(channel, "Chat")(iter(requests.result, None), timeout=30)
        child.process.terminate()
        with pytest.raises(grpc.RpcError):
            next(chat)
        assert child.ended()[0] == 0
        requests.set_exception(StopIteration())


def test_a_port_in_use_is_one_line(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for setting in ("listen", "metrics_listen"):
            child = start(**{setting: address})
            status, log = child.ended()
            last = log.splitlines()[-1]
            assert status == 3
            assert last.startswith(f"error: echo: cannot listen on {address}")
            assert "Traceback" not in log
            assert not child.ready_file.exists()


def test_two_services_never_share_a_port(running: Child, start: Start) -> None:
    status, log = start(listen=running.facts["address"]).ended()
    assert status == 3
    assert "in use" in log


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"listen": "nonsense"}, "HYPER_ECHO__LISTEN"),
        ({"listen": "127.0.0.1:99999"}, "HYPER_ECHO__LISTEN"),
        ({"drain_grace_s": "-1"}, "HYPER_ECHO__DRAIN_GRACE_S"),
        ({"etcd_endpoints": '["nowhere"]'}, "HYPER_ECHO__ETCD_ENDPOINTS"),
        ({"auth_keys__k1": "short"}, "HYPER_ECHO__AUTH_KEYS"),
        ({"log_format": "xml"}, "HYPER_ECHO__LOG_FORMAT"),
    ],
)
def test_a_bad_setting_is_one_line(start: Start, settings: dict[str, str], said: str) -> None:
    status, log = start(**settings).ended()
    assert status == 2
    (line,) = log.splitlines()
    assert line.startswith(f"error: setting {said}")


def test_a_known_failure_of_build_is_one_line(start: Start) -> None:
    status, log = start(break_build="ETCD_UNREACHABLE").ended()
    assert status == 2
    assert log.splitlines()[-1].startswith("error: echo: because of ETCD_UNREACHABLE")
    assert "Traceback" not in log


def test_an_error_in_a_task_group_is_the_error_itself(start: Start) -> None:
    status, log = start(break_build="group").ended()
    assert status == 2
    assert log.splitlines()[-1].startswith("error: echo: because of S3_UNREACHABLE")


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", ":0", "gateway.example.org:0"])
def test_without_keys_it_listens_on_loopback_alone(start: Start, listen: str) -> None:
    status, log = start(listen=listen).ended()
    assert status == 2
    line = log.splitlines()[-1]
    assert line.startswith("error: echo: whoever reaches")
    for fix in ("HYPER_ECHO__AUTH_KEYS__", "HYPER_ECHO__LISTEN", "HYPER_ECHO__ALLOW_ANYONE"):
        assert fix in line


def test_anyone_may_call_only_if_that_is_said_and_the_log_says_so(start: Start) -> None:
    child = until_ready(start(listen="0.0.0.0:0", allow_anyone="true"))
    assert "anyone who reaches this service may do everything" in child.log.read_text()


def test_hooks_that_fail_or_hang_do_not_hold_up_the_end(start: Start) -> None:
    child = until_ready(start(break_drain="true", drain_grace_s="0.2", log_format="json"))
    child.process.terminate()
    status, log = child.ended()
    assert status == 0
    failed = [json.loads(line)["error"] for line in log.splitlines() if "hook failed" in line]
    assert failed[0].startswith("because of ETCD_UNREACHABLE")
    assert failed[1:] == ["TimeoutError"]
    assert "the last hook ran" in log


def test_a_bug_in_build_is_logged_with_its_stack(start: Start) -> None:
    status, log = start(break_build="bug").ended()
    assert status == 1
    assert "Traceback" in log
    assert log.splitlines()[-1] == "error: echo: a bug in build"


def test_a_wildcard_is_announced_by_an_address_of_this_machine(start: Start) -> None:
    child = until_ready(start(listen="0.0.0.0:0", allow_anyone="true", metrics_listen="0.0.0.0:0"))
    for key in ("address", "metrics_address"):
        host, port = child.facts[key].rsplit(":", 1)
        assert host != "0.0.0.0"
        socket.create_connection((host, int(port)), timeout=5).close()
    advertised = start(listen="0.0.0.0:0", allow_anyone="true", advertise="public.example.org:0")
    child = until_ready(advertised)
    assert child.facts["address"].startswith("public.example.org:")
    assert not child.facts["address"].endswith(":0")


KEY = "k" * 32


def shown(tenant: str, *, lifetime_s: float = 600, who: str = "me") -> Any:
    """Metadata with a token."""
    token = Signer("k1", KEY).sign(tenant, subject=who, expires_s=time.time() + lifetime_s)
    return (("authorization", f"Bearer {token}"),)


def test_an_idle_stream_ends_when_its_token_expires(start: Start) -> None:
    child = until_ready(start(auth_keys__k1=KEY, log_format="json"))
    with child.channel() as channel:
        good = caller(channel, "Stream")(StringValue(value="wait"), metadata=shown("*"), timeout=60)
        call = caller(channel, "Stream")(
            StringValue(value="wait"), metadata=shown("*", lifetime_s=-27), timeout=60
        )  # 30 s are allowed for clocks that differ
        assert next(good).value == next(call).value == "first"
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "has expired" in caught.value.details()
        child.process.terminate()  # "wait" ends with the service
        assert [each.value for each in good] == ["wait"]  # to its end: to leave now is to cancel
    assert "Traceback" not in child.ended()[1]


def test_calls_too_many_of_one_token_are_refused_with_the_time_to_wait(start: Start) -> None:
    child = until_ready(start(auth_keys__k1=KEY, calls_per_s="2"))
    with child.channel() as channel:
        unary = caller(channel, "Unary")
        request = StringValue(value="echo")

        def errors(metadata: Any) -> list[HyperError]:
            calls = [unary.future(request, metadata=metadata, timeout=30) for _ in range(30)]
            return [from_rpc_error(call) for call in calls if call.exception() is not None]

        assert not errors(shown("*"))  # services, workers and operators of the cluster
        refused = [e for e in errors(shown("lab")) if isinstance(e, ResourceExhaustedError)]
        assert len(refused) >= 20
        assert all(error.reason == "QUOTA_EXCEEDED" for error in refused)
        assert all(error.retry_after_s and error.retry_after_s <= 0.5 for error in refused)
        others = [e for e in errors(shown("lab")) if not isinstance(e, ResourceExhaustedError)]
        assert others  # another token has a budget of its own


def test_the_audit_log_is_not_silenced_and_names_what_was_changed(start: Start) -> None:
    child = until_ready(start(auth_keys__k1=KEY, log_level="ERROR", log_format="json"))
    with child.channel() as channel:
        call = caller(channel, "Unary")
        metadata = (*shown("*", who="ada"), ("x-request-id", "r-1"))
        call(StringValue(value="echo"), metadata=metadata, timeout=10)
        with pytest.raises(grpc.RpcError):
            call(StringValue(value="raise NOT_FOUND"), metadata=metadata, timeout=10)
    wait_until(lambda: child.log.read_text().count('"event": "audit"') == 2)  # after the answer
    written = [json.loads(line) for line in child.log.read_text().splitlines()]
    lines = [line for line in written if line["event"] == "audit"]
    assert [line["code"] for line in lines] == ["OK", "NOT_FOUND"]
    for line in lines:
        assert (line["method"], line["tenant"], line["subject"]) == ("Unary", "*", "ada")
        assert line["request_id"] == "r-1" and len(line["token"]) == 16 and line["timestamp"]
