"""Values never become shell syntax, wherever the placeholder stands."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyper_worker.runner.template import TemplateError, render


def run(template: str, parameters: dict[str, Any]) -> str:
    command, variables = render(template, parameters)
    done = subprocess.run(
        ["/bin/sh", "-c", command], env=variables, capture_output=True, check=True, timeout=10
    )
    return done.stdout.decode(errors="surrogateescape")


TEXTS = st.text(
    st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=30
) | st.text("$`\"'\\;&|()<>{}*?~!# \nabc", max_size=12)


@settings(max_examples=30, deadline=None)
@given(TEXTS)
def test_a_value_arrives_as_it_is(value: str) -> None:
    template = "/usr/bin/printf '%s|' {{v}} \"<{{v}}>\" '<{{v}}>' a{{ v }}b \"it's {{v}}\""
    assert run(template, {"v": value}) == f"{value}|<{value}>|<{value}>|a{value}b|it's {value}|"


@settings(max_examples=30, deadline=None)
@given(TEXTS)
def test_no_context_lets_a_value_run(value: str) -> None:
    template = 'x=`echo {{v}}`; y=$(echo "{{v}}"); # \'{{v}}\ncat <<E\n{{v}}\nE\necho safe'
    assert run(template, {"v": value + "\necho owned >&2; exit 9"}).endswith("safe\n")


SHELLS = ["sh -c", "exec /bin/sh -eu -c", "true && sh -c", "eval"]


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.sampled_from(SHELLS))
def test_a_value_is_data_in_an_inner_shell_too(value: str, shell: str) -> None:
    printf = "/usr/bin/printf %s_"
    for script in (
        f"'{printf} {{{{v}}}} a{{{{v}}}}b'",
        f'"{printf} {{{{v}}}} a{{{{v}}}}b"',
        f'\'{printf} "{{{{v}}}}" "a{{{{v}}}}b"\'',
        f'"{printf} \\"{{{{v}}}}\\" \\"a{{{{v}}}}b\\""',
        f"\"{printf} '{{{{v}}}}' 'a{{{{v}}}}b'\"",
    ):
        assert run(f"{shell} {script}", {"v": value}) == f"{value}_a{value}b_"


def test_inside_and_outside_of_an_inner_shell() -> None:
    template = 'echo {{v}}; sh -c \'echo {{v}}; touch "$1"\' sh {{v}} && ls; echo "-c {{v}}"'
    assert run(f"cd $(mktemp -d); {template}", {"v": "$(id)'x"}) == (
        "$(id)'x\n$(id)'x\n$(id)'x\n-c $(id)'x\n"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (0.001, "0.001"), (True, "true"), (None, "null"), ([1, "a"], '[1, "a"]'), ("", "")],
)
def test_other_types_are_json(value: Any, text: str) -> None:
    assert run("/usr/bin/printf %s {{v}}", {"v": value}) == text


def test_names_that_look_alike_stay_apart() -> None:
    assert run("echo {{a-b}} {{a_b}} {{a.b}}", {"a-b": 1, "a_b": 2, "a.b": 3}) == "1 2 3\n"


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\{\{b\}\}.*there are: a"):
        render("echo {{b}}", {"a": 1})
    with pytest.raises(TemplateError, match="NUL"):
        render("echo {{a}}", {"a": "\0"})
    with pytest.raises(TemplateError, match="surrogate"):
        render("echo {{a}}", {"a": "\ud800"})
