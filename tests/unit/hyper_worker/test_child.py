"""What the warm process makes of names and results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hyper_worker.config import WorkerSettings
from hyper_worker.convert import jobs_from_proto
from hyper_worker.core.model import Job, Key
from hyper_worker.runner.child import (
    FILE,
    INLINE,
    _sentence,
    encode_result,
    pack_request,
    packet_number,
    resolve,
)  # fmt: skip
from hyper_worker.runner.environment import base_environment
from hyperapi.worker.v1 import agent_service_pb2 as wire


def test_a_long_call_travels_as_a_file(tmp_path: Path) -> None:
    short = Job(Key("task", 7, 1), function="json:dumps", parameters_json='{"a": "\u00fc"}')
    packet = pack_request(3, short, str(tmp_path / "scratch"))
    assert (packet[:1], packet_number(packet)) == (INLINE, 3)
    assert packet[5:].decode().split("\0") == ["task", "7.1", "", "json:dumps", '{"a": "\u00fc"}']
    long = Job(Key("task", 7, 1), function="json:dumps", parameters_json="x" * 200_000)
    packet = pack_request(4, long, str(tmp_path / "scratch"))
    assert (packet[:1], packet_number(packet)) == (FILE, 4)
    assert Path(packet[5:].decode()).read_text().endswith("\0" + "x" * 200_000)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json", "write package.module:callable"),
        ("json:", "write package.module:callable"),
        ("json:missing", "has no 'missing'"),
        ("json:decoder.nothing", "has no 'decoder.nothing'"),
        ("string:digits", "is a str, not a function"),
    ],
)
def test_wrong_functions_are_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(name)


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("torch", "pip install -e"), ("lightgbm.basic", "[examples]"),
        ("nobody_knows", "install it where the workers run"),
    ],
)  # fmt: skip
def test_what_a_function_lacks_is_named_with_what_brings_it(module: str, advice: str) -> None:
    text = _sentence(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert text.startswith(f"ModuleNotFoundError: No module named {module!r}: ")
    assert advice in text and "`setup`" in text
    said = ModuleNotFoundError("bring it yourself", name=module)
    assert _sentence(said) == "ModuleNotFoundError: bring it yourself"


def test_functions_are_found() -> None:
    assert resolve("json:dumps") is json.dumps
    assert resolve("json:decoder.JSONDecoder") is json.decoder.JSONDecoder


def test_results() -> None:
    assert encode_result(None) == ""
    assert encode_result({"a": np.float32(0.5), "b": np.arange(2)}) == '{"a": 0.5, "b": [0, 1]}'
    for wrong in (object(), float("nan"), {1, 2}):
        with pytest.raises(ValueError, match="not JSON"):
            encode_result(wrong)
    with pytest.raises(ValueError, match="over the limit"):
        encode_result("x" * 65_536)


def test_tasks_do_not_see_settings_of_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPER_STORAGE__S3__SECRET_KEY", "secret")
    monkeypatch.setenv("HYPER_TENANT", "fly")
    environment = base_environment("host:1", {"EXTRA": "1"})
    assert "secret" not in environment.values()
    assert (environment["HYPER_TENANT"], environment["EXTRA"]) == ("fly", "1")
    assert environment["HYPER_ENDPOINT"] == "host:1"


def test_tasks_have_a_token_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPER_TOKEN", "of the worker")
    monkeypatch.setenv("HYPER_TOKEN_FILE", "/its/file")
    assert base_environment("", {})["HYPER_TOKEN"] == "of the worker"
    environment = base_environment("", {}, token="of the tenant")
    assert environment["HYPER_TOKEN"] == "of the tenant"
    assert "HYPER_TOKEN_FILE" not in environment
    assert base_environment("", {"HYPER_TOKEN": "mine"}, token="t")["HYPER_TOKEN"] == "mine"
    spec = wire.TaskSpec(experiment="tenants/lab/workflows/w/experiments/a", token="hyp1.shown")
    group = wire.StartGroup(
        experiment=spec.experiment, indices=[0], numbers=[1], parameters_json=["{}"]
    )
    (job,) = jobs_from_proto(wire.TaskBatch(groups=[group]), {spec.experiment: spec})
    assert job.token == "hyp1.shown"
    assert "hyp1" not in repr(job)


def test_settings_name_a_wrong_endpoint() -> None:
    with pytest.raises(ValueError, match="host:port"):
        WorkerSettings(scheduler_endpoint="nonsense")
