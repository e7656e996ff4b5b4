"""`hyper`: the command line. Commands live in the modules beside this one.

Exit status: see `_EPILOG`. Every failure is one line, `error: ...`, on stderr; with `--json` it is
also an object on stdout, unless the command has printed its result: `error` with `exit_status`,
`code` (of gRPC, or USAGE, INTERRUPTED, FAILED), `message` (which says what to do), and for what a
service refused `reason`, `metadata`, `field` and `retry_after_s`.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import tempfile
import traceback
from typing import Annotated, Any

import typer

from hyper.cli import output
from hyper.config import CLUSTER_FILE, hyper_home
from hyper.errors import HyperError

# Each has `register(app)`, which adds its commands.
_COMMAND_MODULES = (
    "hyper.cli.cluster",
    "hyper.cli.workflows",
    "hyper.cli.running",
    "hyper.cli.top",
    "hyper.cli.placement",
    "hyper.cli.certs",
    "hyper.cli.tokens",
    "hyper.cli.data",
    "hyper.cli.arrays",
    "hyper.cli.history",
    "hyper.cli.align",
    "hyper.cli.stitch",
    "hyper.cli.infer",
    "hyper.cli.match",
    "hyper.cli.train_nccnet",
    "hyper.cli.mount",
    "hyper.cli.report",
    "hyper.cli.view",
)
_SCANT_BYTES = 1 << 20
_INTERRUPTED = 130
_USAGE = 2
# typer carries its own click since 0.2x and the real one before; its public names tell which.
_UsageProblem: Any = next(k for k in typer.BadParameter.__mro__ if k.__name__ == "ClickException")

_EPILOG = (
    "Exit status: 0 done; 1 the work failed; 2 bad input, usage or set-up; 3 a service cannot be "
    "reached, or there is no cluster; 130 interrupted. With --json the last line of standard "
    "output is the result or, where there is none, an object `error`. Completion: "
    "`hyper --install-completion`. All commands: docs/cli.md."
)

app = typer.Typer(
    name="hyper",
    epilog=_EPILOG,
    help="Hyper: from sections of a brain to an aligned volume, on machines that may vanish.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # 50 ms of every command's start

        print(f"hyper {version('hyper-dl')}")
        raise typer.Exit


@app.callback()
def _globals(
    version: Annotated[
        bool,
        typer.Option("--version", help="print the version", callback=_print_version, is_eager=True),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="show the traceback of an unexpected error")
    ] = False,
    endpoint: Annotated[
        str, typer.Option(help="host:port[,host:port] of schedulers; beats HYPER_ENDPOINT")
    ] = "",
) -> None:
    if debug:
        os.environ["HYPER_DEBUG"] = "1"
    if endpoint:
        os.environ["HYPER_ENDPOINT"] = endpoint


for _name in _COMMAND_MODULES:
    importlib.import_module(_name).register(app)


def run(arguments: list[str] | None = None) -> int:
    """Run one command line; returns the exit status and lets no exception out."""
    given = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in given[: given.index("--") if "--" in given else None]
    output.Said.result, output.Said.last = False, ""
    status, facts = _run(arguments)
    if as_json and facts is not None and not output.Said.result:
        facts = {"exit_status": status, **facts}
        try:
            output.emit({"error": facts}, "", as_json=True)
        except BrokenPipeError:
            _leave_pipe()
    return status


def _run(arguments: list[str] | None) -> tuple[int, dict[str, Any] | None]:
    """The exit status, and the facts of a failure."""
    try:
        status = app(arguments, standalone_mode=False, prog_name="hyper")
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        output.say("interrupted")
        return _INTERRUPTED, _facts("INTERRUPTED", "interrupted")
    except typer.Exit as leave:
        return leave.exit_code, _left(leave.exit_code)
    except _UsageProblem as error:
        return _usage(error)
    except HyperError as error:
        error = _cause(error)
        output.fail(str(error))
        more = {
            "reason": error.reason, "metadata": error.metadata, "field": error.field,
            "retry_after_s": error.retry_after_s,
        }  # fmt: skip
        return error.exit_code, _facts(error.code, str(error)) | more
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        _leave_pipe()
        return 1, None
    except Exception as error:  # noqa: BLE001  (the last resort: one line and a file to report)
        status = _unexpected(error)
        code = "FAILED_PRECONDITION" if status == _USAGE else "INTERNAL"
        return status, _facts(code, output.Said.last.removeprefix("error: "))
    status = status if isinstance(status, int) else 0
    return status, _left(status)


def _leave_pipe() -> None:
    """Let nothing complain at the end that nobody reads our output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _facts(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message}


def _left(status: int) -> dict[str, Any] | None:
    """The facts of a command that ends with a status of its own; it has said why."""
    if status == 0:
        return None
    code = "INTERRUPTED" if status == _INTERRUPTED else "FAILED"
    return _facts(code, output.Said.last or f"ended with exit status {status}")


def _cause(error: HyperError) -> HyperError:
    """The error, or why a local cluster's etcd and S3 are silent: on a full disk they hang."""
    if error.reason not in ("ETCD_UNREACHABLE", "S3_UNREACHABLE"):
        return error
    if os.environ.get("HYPER_ENDPOINT") or not (hyper_home() / CLUSTER_FILE).exists():
        return error
    from hyper.cluster.home import Home, disk_full

    home = Home(hyper_home())
    return disk_full(home.root) if home.free_bytes() < _SCANT_BYTES else error


def _usage(error: Any) -> tuple[int, dict[str, Any]]:
    """A mistake on the command line, in one line."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        output.say(error.format_message())
        return _USAGE, _facts("USAGE", "no command was given; see `hyper --help`")
    path = context.command_path if context is not None else "hyper"
    message = f"{error.format_message().rstrip('.')}; see `{path} --help`"
    output.fail(message)
    return _USAGE, _facts("USAGE", message)


def _unexpected(error: Exception) -> int:
    """A disk or file problem in one line; a bug in one line and a file with the traceback."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" while writing {error.filename}" if error.filename else ""
        output.fail(f"the disk is full{where}: free some space and try again")
        return _USAGE
    if isinstance(error, OSError) and error.filename is not None:
        output.fail(f"{error.filename}: {error.strerror}")
        return _USAGE
    if os.environ.get("HYPER_DEBUG"):
        traceback.print_exception(error)
        return 1
    with tempfile.NamedTemporaryFile(
        "w", prefix="hyper-error-", suffix=".txt", delete=False
    ) as file:
        file.write(f"arguments: {sys.argv[1:]}\n\n")
        traceback.print_exception(error, file=file)
    text = str(error).splitlines()
    summary = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    output.fail(f"unexpected {summary[:300]}; this is a bug, its traceback is in {file.name}")
    return 1


def main() -> None:
    """The `hyper` program."""
    sys.exit(run())


if __name__ == "__main__":
    main()
