"""What the command line makes of mistakes, failures and interruptions."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from hyper.cli import main as cli
from hyper.cli import output
from hyper.cluster.home import Home
from hyper.config import CLUSTER_FILE
from hyper.errors import InvalidArgumentError, UnavailableError, WorkFailedError
from scripts import cli_docs


@pytest.fixture
def failing() -> Iterator[list[BaseException]]:
    """A command `fail` that raises what the test puts into the list."""
    errors: list[BaseException] = []

    def fail(json_output: Annotated[bool, typer.Option("--json")] = False) -> None:
        if len(errors) > 1:
            output.emit([1], "", as_json=json_output)
        raise errors[0]

    cli.app.command("fail")(fail)
    yield errors
    cli.app.registered_commands.pop()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidArgumentError("no such thing: do this"), 2),
        (UnavailableError("nobody answers: run `hyper up`"), 3),
        (WorkFailedError("the work failed"), 1),
    ],
)
def test_an_error_is_one_line_and_its_status(
    failing: list[BaseException],
    error: BaseException,
    status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing.append(error)
    assert cli.run(["fail"]) == status
    captured = capsys.readouterr()
    assert captured.err == f"error: {error}\n"
    assert captured.out == ""


COMMANDS = dict(cli_docs.commands(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("path", sorted(COMMANDS))
def test_every_command_speaks_json_and_fails_in_it(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [option for each in COMMANDS[path].params for option in each.opts]
    assert "--json" in options
    assert cli.run([*path.split(), "--json", "--no-such-option"]) == 2
    captured = capsys.readouterr()
    error = json.loads(captured.out.splitlines()[-1])["error"]
    assert (error["exit_status"], error["code"]) == (2, "USAGE")
    assert f"see `hyper {path} --help`" in error["message"]
    assert captured.err == f"error: {error['message']}\n"
    assert cli.run([*path.split(), "--no-such-option"]) == 2
    assert capsys.readouterr().out == ""


def error_of(capsys: pytest.CaptureFixture[str]) -> Any:
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)["error"]


def test_errors_as_json(
    failing: list[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    refused = InvalidArgumentError(
        "no: do this", reason="INVALID_RECIPE", metadata={"line": "3"}, field="recipe"
    )
    failing.append(refused)
    assert cli.run(["fail", "--json"]) == 2
    assert error_of(capsys) == {
        "exit_status": 2, "code": "INVALID_ARGUMENT", "reason": "INVALID_RECIPE",
        "message": "no: do this", "metadata": {"line": "3"}, "field": "recipe",
        "retry_after_s": None,
    }  # fmt: skip
    for error, status, code in (
        (UnavailableError("x"), 3, "UNAVAILABLE"),
        (KeyboardInterrupt(), 130, "INTERRUPTED"),
        (OSError(errno.ENOSPC, "full", "/f"), 2, "FAILED_PRECONDITION"),
        (RuntimeError("a bug"), 1, "INTERNAL"),
        (typer.Exit(1), 1, "FAILED"),
    ):
        failing[0] = error
        assert cli.run(["fail", "--json"]) == status
        found = error_of(capsys)
        assert (found["exit_status"], found["code"]) == (status, code)
        assert found["message"]
    failing[0] = typer.Exit(0)
    assert cli.run(["fail", "--json"]) == 0
    assert capsys.readouterr().out == ""


def test_a_result_that_was_printed_stays_the_last_line(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing += [WorkFailedError("after all"), KeyError("a result")]
    assert cli.run(["fail", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "[1]\n" and captured.err == "error: after all\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_an_interrupt_is_130(
    failing: list[BaseException], error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(error)
    assert cli.run(["fail"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_full_disk_is_said_in_one_line(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/report.html"))
    assert cli.run(["fail"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: the disk is full while writing /data/report.html")
    assert text.count("\n") == 1


@pytest.mark.parametrize(("free", "words"), [(0, "the disk of "), (10**9, "etcd is silent")])
def test_a_silent_etcd_on_a_full_disk_is_a_full_disk(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, free: int, words: str,
) -> None:  # fmt: skip
    (tmp_path / CLUSTER_FILE).touch()
    monkeypatch.setenv("HYPER_HOME", str(tmp_path))
    monkeypatch.delenv("HYPER_ENDPOINT", raising=False)
    monkeypatch.setattr(Home, "free_bytes", lambda self: free)
    failing.append(UnavailableError("etcd is silent", reason="ETCD_UNREACHABLE"))
    assert cli.run(["fail"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {words}")


def test_a_missing_file_is_named(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(FileNotFoundError(errno.ENOENT, "No such file or directory", "recipe.yaml"))
    assert cli.run(["fail"]) == 2
    assert capsys.readouterr().err == "error: recipe.yaml: No such file or directory\n"


def test_a_bug_is_one_line_and_a_file_with_its_traceback(
    failing: list[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("HYPER_DEBUG", raising=False)
    failing.append(RuntimeError("first line\nsecond line"))
    assert cli.run(["fail"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: unexpected RuntimeError: first line; this is a bug")
    assert text.count("\n") == 1
    (file,) = tmp_path.iterdir()
    assert str(file) in text
    assert "Traceback" in file.read_text()


def test_debug_shows_the_traceback(
    failing: list[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HYPER_DEBUG", "0")  # so that it is put back afterwards
    failing.append(RuntimeError("why"))
    assert cli.run(["--debug", "fail"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nonsense"], "No such option: --nonsense; see `hyper --help`"),
        (["nonsense"], "No such command 'nonsense'"),
        (["up", "--workers", "0"], "see `hyper up --help`"),
        (["up", "--workers", "many"], "see `hyper up --help`"),
        (["up", "--port", "70000"], "see `hyper up --help`"),
        (["restart"], "Missing argument"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert said in text
    assert text.count("\n") == 1


def test_certs_name_what_they_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["certs", str(tmp_path / "c"), "--client", "ada", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert all(Path(name).is_file() for name in [made["authority"], *made["made"]])
    assert [Path(name).name for name in made["made"]] == ["ada.pem", "ada.key"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("hyper 0.")


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    captured = capsys.readouterr()
    assert "Usage: hyper" in captured.out + captured.err


def test_heavy_packages_are_not_imported_to_show_the_help() -> None:
    code = (
        "import sys, hyper.cli.main as m; "
        "heavy = {'torch', 'zarr', 'scipy', 'numba', 'minio', 'pydantic', 'matplotlib', 'PIL', "
        "'numpy'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50
    )
    assert done.stdout.strip() == "[]"


def test_table_aligns_columns() -> None:
    assert output.table(("A", "LONG"), [("xyz", 1), ("y", "")]) == "A    LONG\nxyz  1\ny"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (7e13, "70.0 TB")],
)
def test_human_bytes(count: float, text: str) -> None:
    assert output.human_bytes(count) == text


@pytest.mark.parametrize(("what", "shown"), [("KeyboardInterrupt", False), ("OSError", True)])
def test_an_interrupted_import_shows_no_traceback(what: str, shown: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import hyper.cli; raise {what}"], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert ("Traceback" in done.stderr) is shown
    assert ("interrupted" in done.stderr) is not shown


def test_the_shell_completes_commands() -> None:
    environment = {
        **os.environ,
        "_HYPER_COMPLETE": "complete_bash",
        "COMP_WORDS": "hyper st",
        "COMP_CWORD": "1",
    }
    program = Path(sys.executable).with_name("hyper")
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["status", "stitch", "store"]
