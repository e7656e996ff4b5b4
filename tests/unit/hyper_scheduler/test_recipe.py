"""Recipes: what is accepted, and how every mistake is named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyper.errors import InvalidArgumentError
from hyper_scheduler.core.model import Choice, Hardware, LogUniform, Sampling, Steps, Uniform
from hyper_scheduler.core.parameters import count, parameters
from hyper_scheduler.positioned import MAX_BYTES
from hyper_scheduler.recipe import parse_recipe

GOOD = """
version: 1
name: hpo
experiments:
  search:
    depends_on: [prepare]
    image: python:3.11-slim-bookworm
    hardware: {cpus: 4, memory: 8GiB, gpu: 0, spot: true}
    parameters:
      depth: [3, 4, 5]
      lr: "0.001-0.1"
      decay: {loguniform: [1e-5, 1e-2]}
      drop: {uniform: [0, 0.5]}
      seed: {randint: [1, 10]}
      data: hyper://tenant/set
      box: {value: [1, 2]}
    sampling: random
    samples: 64
    workers: 16
    command: "python train.py --depth {{depth}} --lr {{ lr }} {{data}}"
    retries: 1
    timeout: 2h
    grace: 30s
    env: {THREADS: 4, VERBOSE: true}
    workdir: .
    labels: {zone: a}
    seed: 7
  prepare:
    function: package.module:prepare
    parameters: {shard: {range: [0, 1000]}}
deadline: 12h
budget: 40 USD
priority: 2
"""


def test_everything_that_is_accepted() -> None:
    recipe = parse_recipe(GOOD)
    assert [each.name for each in recipe.experiments] == ["prepare", "search"]
    assert (recipe.name, recipe.deadline_s, recipe.budget_usd, recipe.priority) == (
        "hpo", 43_200.0, 40.0, 2,
    )  # fmt: skip
    prepare, search = recipe.experiments
    assert prepare.parameters == {"shard": Steps(0, 1, 1000)}
    assert (count(prepare), count(search)) == (1000, 64)
    assert search.parameters == {
        "depth": Choice(("3", "4", "5")),
        "lr": Uniform(0.001, 0.1),
        "decay": LogUniform(1e-5, 1e-2),
        "drop": Uniform(0.0, 0.5),
        "seed": Steps(1, 1, 10),
        "data": Choice(('"hyper://tenant/set"',)),
        "box": Choice(("[1, 2]",)),
    }
    assert search.hardware == Hardware(cpus=4.0, memory_bytes=8 << 30)
    assert (search.retries, search.timeout_s, search.grace_s) == (1, 7200.0, 30.0)
    assert search.env == {"THREADS": "4", "VERBOSE": "true"}
    assert (search.sampling, search.seed, search.workers) == (Sampling.RANDOM, 7, 16)
    assert (prepare.retries, prepare.grace_s, prepare.timeout_s) == (3, 10.0, None)


def one(body: str) -> str:
    """A recipe whose experiment `a` has this body, beginning on line 4."""
    return "name: x\nexperiments:\n  a:\n" + "".join(f"    {line}\n" for line in body.split("\n"))


BAD = {
    "unknown key": (one("comand: ls"), 4, "experiments.a.comand", "did you mean 'command'?"),
    "unknown top key": ("nam: x\n", 1, "nam", "unknown key 'nam'"),
    "wrong type": (one("command: ls\nworkers: many"), 5, "experiments.a.workers", "whole number"),
    "bool is no number": (one("command: ls\nretries: true"), 5, "experiments.a.retries", "whole"),
    "experiment is a list": ("name: x\nexperiments: [1]\n", 2, "experiments", "a mapping"),
    "no name": ("experiments: {a: {command: ls}}\n", 1, "name", "`name` is missing"),
    "bad name": ("name: ../x\nexperiments: {a: {command: ls}}\n", 1, "name", "not a valid name"),
    "bad experiment": ("name: x\nexperiments:\n  a/b: {command: ls}\n", 3, "experiments.a/b",
                       "not a valid name"),
    "no experiment": ("name: x\nexperiments: {}\n", 2, "experiments", "no experiment"),
    "no work": (one("retries: 1"), 3, "experiments.a", "`command` or `function` is missing"),
    "both": (one("command: ls\nfunction: a:b"), 5, "experiments.a.function", "keep one"),
    "no function": (one("function: foo.bar"), 4, "experiments.a.function",
                    "package.module:callable"),
    "empty command": (one("command: ' '"), 4, "experiments.a.command", "empty"),
    "undefined": (one("command: 'ls {{nope}}'\nparameters: {b: 1}"), 4, "experiments.a.command",
                  "{{nope}} is not a parameter (there are: b)"),
    "empty list": (one("command: ls\nparameters:\n  b: []"), 6, "experiments.a.parameters.b",
                   "no task"),
    "empty range": (one("command: ls\nparameters:\n  b: {range: [5, 5]}"), 6,
                    "experiments.a.parameters.b.range", "no task"),
    "tiny step": (one("command: ls\nparameters: {b: {range: [0, 1, 5e-324]}}"), 5,
                  "experiments.a.parameters.b.range", "the step is too small"),
    "tiny step the wrong way": (one("command: ls\nparameters: {b: {range: [1, 0, 1e-320]}}"), 5,
                                "experiments.a.parameters.b.range", "the step is too small"),
    "range of everything": (
        one(f"command: ls\nparameters: {{b: {{range: [-{2**62}, {2**62}]}}}}"), 5,
        "experiments.a.parameters", "the product of the parameters is too large"),
    "randint upside down": (one("command: ls\nparameters: {b: {randint: [3, 2]}}"), 5,
                            "experiments.a.parameters.b.randint", "3 is not below 2"),
    "product of too many": (one("command: ls\nparameters: {b: {range: [0, 20000]}, "
                                "c: {range: [0, 20000]}}"), 2, "experiments", "are more than"),
    "unequal each": (
        one("command: ls\nparameters: {i: [1, 2]}") +
        "  b: {command: ls, depends_on: {a: each}, parameters: {i: [1, 2, 3]}}\n", 6,
        "experiments.b.depends_on", "it has 3 tasks and follows a task by task, which has 2"),
    "bad kind": (one("command: ls\nparameters: {b: {rnge: [1, 2]}}"), 5,
                 "experiments.a.parameters.b", "not a kind of parameter"),
    "context": (one("function: a:b\nparameters: {context: 1}"), 5,
                "experiments.a.parameters.context", "first argument"),
    "continuous grid": (one("command: ls\nparameters: {b: '0.1-0.2'}"), 5,
                        "experiments.a.parameters.b", "sampling: random"),
    "no samples": (one("command: ls\nsampling: random"), 3, "experiments.a", "needs `samples`"),
    "samples of grid": (one("command: ls\nsamples: 3"), 5, "experiments.a.samples",
                        "needs `sampling: random`"),
    "unknown dependency": (one("command: ls\ndepends_on: [b]"), 5, "experiments.a.depends_on",
                           "no experiment 'b'"),
    "self": (one("command: ls\ndepends_on: a"), 5, "experiments.a.depends_on", "a -> a"),
    "duration": (one("command: ls\ntimeout: soon"), 5, "experiments.a.timeout", "2h, 5m or 30s"),
    "no duration": (one("command: ls\ntimeout: 0"), 5, "experiments.a.timeout",
                    "more than nothing"),
    "empty duration": (one("command: ls\ntimeout: ''"), 5, "experiments.a.timeout", "2h, 5m"),
    "dots": (one("command: ls\ntimeout: 1.2.3s"), 5, "experiments.a.timeout", "2h, 5m"),
    "memory of no machine": (one(f"command: ls\nhardware: {{memory: {'9' * 400}TB}}"), 5,
                             "experiments.a.hardware.memory", "at most 1024 TiB"),
    "memory as a number": (one("command: ls\nhardware: {memory: 1125899906842625}"), 5,
                           "experiments.a.hardware.memory", "at most 1024 TiB"),
    "memory": (one("command: ls\nhardware: {memory: lots}"), 5, "experiments.a.hardware.memory",
               "8GiB"),
    "budget": ("name: x\nexperiments: {a: {command: ls}}\nbudget: 40 EUR\n", 3, "budget", "40 USD"),
    "version": ("version: 2\nname: x\nexperiments: {a: {command: ls}}\n", 1, "version",
                "only version 1"),
    "duplicate": (one("command: ls\ncommand: pwd"), 5, "experiments.a.command", "given twice"),
    "small gang": (one("command: ls\ngang: 8\nworkers: 4"), 6, "experiments.a.workers",
                   "a gang of 8 needs as many at once"),
    "no gang": (one("command: ls\ngang: 0"), 5, "experiments.a.gang", "not between 1 and"),
    "gang with objective": (one("command: ls\ngang: 2\nobjective: {metric: x}"), 6,
                            "experiments.a.objective", "objective of gangs"),
    "tpe without objective": (one("command: ls\nsampling: tpe\nsamples: 3"), 3, "experiments.a",
                              "`tpe` needs `objective"),
    "goal": (one("command: ls\nobjective: {metric: x, goal: more}"), 5,
             "experiments.a.objective.goal", "maximize or minimize"),
    "stopping": (one("command: ls\nobjective: {metric: x, early_stopping: median}"), 5,
                 "experiments.a.objective.early_stopping", "write `asha`"),
    "each of nobody": (one("command: ls\ndepends_on: {b: each}"), 5, "experiments.a.depends_on",
                       "there is no experiment 'b'"),
    "how": (one("command: ls\ndepends_on: {b: every}"), 5, "experiments.a.depends_on.b",
            "write `each`"),
    "from nobody": (one("command: ls\nparameters: {b: {from: x}}"), 5,
                    "experiments.a.parameters", "there is no experiment 'x'"),
    "from nothing": (one("command: ls\nparameters: {b: {from: 3}}"), 5,
                     "experiments.a.parameters.b.from", "expected an experiment"),
    "file": (one("command: ls\nparameters: {b: {file: x.txt}}"), 5,
             "experiments.a.parameters.b.file", "read where a recipe is submitted"),
    "no lines": (one("command: ls\nparameters: {b: {lines: ' '}}"), 5,
                 "experiments.a.parameters.b.lines", "there is no line"),
    "empty": ("", 1, "", "empty"),
    "not YAML": ("name: [x\n", 2, "", "not valid YAML"),
    "tab": ("name:\n\t- x\n", 2, "", "not valid YAML"),
    "two documents": ("name: x\n---\nname: y\n", 2, "", "not valid YAML"),
    "infinite": (one("command: ls\nparameters: {b: [.inf]}"), 5, "experiments.a.parameters.b[0]",
                 "not a number"),
}  # fmt: skip


@pytest.mark.parametrize("text, line, key, problem", BAD.values(), ids=BAD.keys())
def test_mistakes_are_named(text: str, line: int, key: str, problem: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        parse_recipe(text)
    error = raised.value
    assert error.reason == "INVALID_RECIPE"
    assert problem in error.message
    assert error.metadata == {"line": str(line), "key": key}
    assert "\n" not in error.message


def test_a_cycle_is_shown() -> None:
    text = """
name: x
experiments:
  start: {command: ls}
  a: {command: ls, depends_on: [start, c]}
  b: {command: ls, depends_on: [a]}
  c: {command: ls, depends_on: [b]}
"""
    with pytest.raises(InvalidArgumentError) as raised:
        parse_recipe(text)
    assert "experiments depend on each other in a cycle: a -> c -> b -> a" in raised.value.message
    assert raised.value.metadata == {"line": "5", "key": "experiments.a.depends_on"}


def test_bombs_are_refused() -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
    )
    for text in (
        laughs,
        "[" * 100_000,
        "name: " + "x" * MAX_BYTES,
        "a: &a [*a]",
        "{" * 30 + "a: 1" + "}" * 30,
        "\0",
        "name: \ud800",
        "&a " * 50_000,
    ):
        with pytest.raises(InvalidArgumentError) as raised:
            parse_recipe(text)
        assert raised.value.reason == "INVALID_RECIPE"
        assert len(raised.value.message) < 400


def test_commands_may_be_lists() -> None:
    for key in ("command", "commands"):
        recipe = parse_recipe(one(f"{key}:\n  - cd x\n  - ls"))
        assert recipe.experiments[0].command == "cd x && ls"


def test_the_gpu_dialects() -> None:
    for text, expected in (
        ("gpu: 2", (2, "")),
        ("gpu: V100", (1, "V100")),
        ("gpu: V100, gpu_count: 4", (4, "V100")),
    ):
        hardware = parse_recipe(one(f"command: ls\nhardware: {{{text}}}")).experiments[0].hardware
        assert (hardware.gpus, hardware.gpu) == expected


def test_scalars_follow_yaml_1_2() -> None:
    recipe = parse_recipe(
        one("command: ls\nparameters: {b: [1e-3, on, 1:30, 0x10, 2020-01-02, '5']}")
    )
    assert recipe.experiments[0].parameters["b"] == Choice(
        ("0.001", '"on"', '"1:30"', "16", '"2020-01-02"', '"5"')
    )


NUMBERS = ["0", "-1", "3", "1e-300", "5e-324", "1e308", "-1e308", str(2**62), str(-(2**62)), "0.1"]
NUMBERS += ["9" * 40, ".5", "0x7fffffffffffffff", "null", "true", '"0.01-0.09"', '"0-1e-320"']


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["range", "uniform", "loguniform", "randint", "choice", "value"]),
    st.lists(st.sampled_from(NUMBERS), max_size=3),
    st.sampled_from(["grid", "random\nsamples: 100000000"]),
)
def test_odd_numbers_are_refused_or_used(kind: str, numbers: list[str], sampling: str) -> None:
    lines = f"command: ls\nparameters: {{b: {{{kind}: [{', '.join(numbers)}]}}}}"
    try:
        (spec,) = parse_recipe(one(f"{lines}\nsampling: {sampling}")).experiments
    except InvalidArgumentError as error:
        assert error.reason == "INVALID_RECIPE"
        return
    for index in {0, count(spec) // 2, count(spec) - 1}:
        json.dumps(parameters(spec, index), allow_nan=False)
    with pytest.raises(IndexError):
        parameters(spec, count(spec))
