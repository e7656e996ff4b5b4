"""What a recipe says of a task's surroundings."""

from __future__ import annotations

import pytest

from hyper.errors import InvalidArgumentError
from hyper_scheduler.convert import task_spec
from hyper_scheduler.core.model import Around
from hyper_scheduler.recipe import parse_recipe


def one(body: str) -> str:
    return "name: x\nexperiments:\n  a:\n" + "".join(f"    {line}\n" for line in body.split("\n"))


FULL = """\
command: ./train {{i}}
parameters: {i: [1, 2]}
image: python:3.11
setup: [pip install numpy, make]
secrets: {TOKEN: api-token, KEY: key}
registry: login
inputs: {/in/data: hyper://t/set@3, more/: "hyper://t/part-{{i}}"}
outputs: {/out: "hyper://t/out-{{ i }}"}
checkpoint: {path: /ckpt, every: 90s}
hardware: {cpus: 1.5, memory: 1GiB, gpu: 2}
network: true"""


def test_everything_reaches_the_worker() -> None:
    (experiment,) = parse_recipe(one(FULL)).experiments
    assert experiment.around == Around(
        setup="pip install numpy && make",
        secrets={"TOKEN": "api-token", "KEY": "key"},
        registry="login",
        inputs=(("/in/data", "hyper://t/set@3"), ("more", "hyper://t/part-{{i}}")),
        outputs=(("/out", "hyper://t/out-{{ i }}"),),
        checkpoint_path="/ckpt",
        checkpoint_every_s=90.0,
        network=True,
    )
    spec = task_spec("e", experiment, "hyp1.t")
    assert (spec.hardware.cpus, spec.hardware.memory_bytes, spec.hardware.gpus) == (1.5, 1 << 30, 2)
    assert (spec.setup, spec.registry, spec.network) == ("pip install numpy && make", "login", True)
    assert dict(spec.secrets) == {"TOKEN": "api-token", "KEY": "key"}
    assert [(each.path, each.address) for each in spec.outputs] == [
        ("/out", "hyper://t/out-{{ i }}")
    ]
    assert (spec.checkpoint.path, spec.checkpoint.every.seconds) == ("/ckpt", 90)


def test_secrets_may_be_a_list() -> None:
    (experiment,) = parse_recipe(one("command: ls\nsecrets: [TOKEN]")).experiments
    assert experiment.around.secrets == {"TOKEN": "TOKEN"}


BAD = {
    "root": ("command: ls\ninputs: {/: hyper://t/a}", 5, "inputs./", "not a folder"),
    "outside": ("command: ls\noutputs: {../x: hyper://t/a}", 5, "outputs.../x", "not a folder"),
    "colon": ('command: ls\noutputs: {"/a:b": hyper://t/a}', 5, "outputs./a:b", "cannot be a path"),
    "address": ("command: ls\ninputs: {/a: nowhere}", 5, "inputs./a", "tenant/name"),
    "array": ("command: ls\ninputs: {/a: hyper://t/a/raw}", 5, "inputs./a", "without an array"),
    "version": ("command: ls\noutputs: {/a: hyper://t/a@1}", 5, "outputs./a", "without '@'"),
    "tenant": (
        'command: ls\nparameters: {t: [1]}\noutputs: {/a: "hyper://{{t}}/a"}', 6, "outputs./a",
        "tenant cannot",
    ),
    "template": ('command: ls\noutputs: {/a: "hyper://t/{{b}}"}', 5, "outputs./a",
                 "not a parameter"),
    "overlap": ("command: ls\ninputs: {/a: hyper://t/a}\noutputs: {/a/b: hyper://t/b}", 6,
                "outputs", "lies in it"),
    "function": ("function: m:f\noutputs: {/a: hyper://t/a}", 5, "outputs", "needs `command`"),
    "network": ("command: ls\nnetwork: true", 5, "network", "no `image`"),
    "variable": ("command: ls\nsecrets: {HYPER_TASK: x}", 5, "secrets.HYPER_TASK", "cannot name"),
    "secret": ("command: ls\nsecrets: {A: ../x}", 5, "secrets.A", "not a valid name"),
    "checkpoint": ("command: ls\ncheckpoint: {every: 5m}", 5, "checkpoint", "`path` is missing"),
    "too often": ("command: ls\ncheckpoint: {path: a, every: 0.1s}", 5, "checkpoint.every",
                  "at most"),
    "setup": ("command: ls\nsetup: ' '", 5, "setup", "is empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named(case: str) -> None:
    body, line, key, text = BAD[case]
    with pytest.raises(InvalidArgumentError) as caught:
        parse_recipe(one(body))
    assert caught.value.metadata["line"] == str(line)
    assert caught.value.metadata["key"].endswith(key)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "command: ls\nworkdir: hyper://bob/private@1",
        "function: m:f\nworkdir: hyper://bob/private@1",
        "command: ls\ninputs: {/a: hyper://bob/private}",
        "command: ls\ninputs: {/a: bob/private}",
        "command: ls\noutputs: {/a: hyper://bob/private}",
    ],
)
def test_another_tenants_datasets_are_refused(body: str) -> None:
    with pytest.raises(InvalidArgumentError, match="another tenant") as caught:
        parse_recipe(one(body), "lab")
    assert caught.value.metadata["line"] == "5"
    parse_recipe(one(body), "bob")
    parse_recipe(one(body))  # as it was stored by an earlier release: workers refuse it
