"""The source of a function, so that a worker can import it: nothing is pickled.

Three cases:

- a function of an installed package: the workers have it too, and its name suffices;
- a function of a file: the `.py` files of its folder (of its package) travel;
- a function of a notebook or of `python -i`: its own source travels, and that of the functions,
  classes, modules and plain values it uses.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import inspect
import linecache
import re
import sys
import sysconfig
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyper.errors import InvalidArgumentError

FILES_MAX = 2_000
BYTES_MAX = 16 << 20
_SKIPPED = {"__pycache__", "node_modules", "site-packages"}
_MARK = re.compile(r"(hyper\.)?task\b")
_PLAIN = (bool, int, float, str, bytes, type(None))


@dataclass(frozen=True, slots=True)
class Shipped:
    """What a worker needs to call a function.

    Args:
        target: "module:function".
        files: of the work folder, by path.
    """

    target: str
    files: Mapping[str, bytes]


def ship(function: Callable[..., Any]) -> Shipped:
    """Gather what a worker needs.

    Raises:
        InvalidArgumentError: it cannot travel; the message says what to change.
    """
    if not isinstance(function, types.FunctionType):
        raise InvalidArgumentError(
            f"{function!r} is no function that can travel: give one made with `def`"
        )
    name = function.__qualname__
    if "<lambda>" in name:
        raise InvalidArgumentError("a lambda has no name on a worker: give it one with `def`")
    if "<locals>" in name:
        raise InvalidArgumentError(
            f"{function.__name__} is made inside another function: move it to the top of its file"
        )
    module = sys.modules.get(function.__module__)
    file = getattr(module, "__file__", None)
    if module is None or file is None or not Path(file).is_file():
        return _from_source(function)
    path = Path(file).resolve()
    if _installed(path):
        return Shipped(f"{function.__module__}:{name}", {})
    if function.__module__ == "__main__":
        return Shipped(f"{path.stem}:{name}", _folder(path.parent))
    package = function.__module__.split(".")
    root = path.parents[len(package) - 1 - (path.name == "__init__.py")]
    if len(package) == 1:
        return Shipped(f"{function.__module__}:{name}", _folder(path.parent))
    files = _folder(root / package[0], prefix=f"{package[0]}/")
    return Shipped(f"{function.__module__}:{name}", files)


def name_of(function: Callable[..., Any]) -> str:
    """How it is called in messages."""
    return getattr(function, "__name__", "the function")


def workflow_name(function: Callable[..., Any]) -> str:
    """A workflow's name after a function's."""
    return re.sub(r"[^a-z0-9]+", "-", name_of(function).lower()).strip("-")[:60] or "map"


def _installed(path: Path) -> bool:
    """Whether a file came with an installation, as the workers' did."""
    places = {sysconfig.get_path(key) for key in ("purelib", "platlib", "stdlib", "platstdlib")}
    if any(place and path.is_relative_to(Path(place).resolve()) for place in places):
        return True
    return path.is_relative_to(Path(__file__).resolve().parent)


def _folder(folder: Path, prefix: str = "") -> dict[str, bytes]:
    """The `.py` files under a folder; hidden ones, other environments and links are left out."""
    found: dict[str, bytes] = {}
    size = 0
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        for entry in sorted(here.iterdir()):
            if entry.name.startswith(".") or entry.is_symlink():
                continue
            if entry.is_dir():
                if entry.name not in _SKIPPED and not (entry / "pyvenv.cfg").exists():
                    waiting.append(entry)
            elif entry.suffix == ".py" and entry.is_file():
                content = entry.read_bytes()
                size += len(content)
                found[prefix + entry.relative_to(folder).as_posix()] = content
            if len(found) > FILES_MAX or size > BYTES_MAX:
                raise InvalidArgumentError(
                    f"{folder} holds more than {FILES_MAX} Python files or {BYTES_MAX >> 20} MiB "
                    "of them: put the function into a folder of its own"
                )
    return found


def _from_source(function: types.FunctionType) -> Shipped:
    """A module made of a function's source and what it refers to."""
    imports: dict[str, str] = {}
    values: dict[str, str] = {}
    sources: dict[str, str] = {}
    _gather(function, imports, values, sources)
    text = "\n\n".join(
        ["from __future__ import annotations",
         "\n".join(imports.values()), "\n".join(values.values()), *sources.values()]
    )  # fmt: skip
    module = f"hyper_shipped_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return Shipped(f"{module}:{function.__name__}", {f"{module}.py": text.encode()})


def _gather(
    thing: types.FunctionType | type,
    imports: dict[str, str],
    values: dict[str, str],
    sources: dict[str, str],
) -> None:
    """Add a function's or class's source, what it needs before it."""
    name = thing.__name__
    if name in sources:
        return
    sources[name] = ""  # its place; it may refer to itself
    if isinstance(thing, types.FunctionType) and thing.__closure__:
        free = ", ".join(thing.__code__.co_freevars)
        raise InvalidArgumentError(
            f"{name} uses {free} of the function around it: hand it over as an argument"
        )
    source = _source(thing)
    scope = thing.__globals__ if isinstance(thing, types.FunctionType) else _scope(thing)
    for used in _names(source):
        if used == name or used not in scope or hasattr(builtins, used):
            continue
        _refer(name, used, scope[used], imports, values, sources)
    sources[name] = sources.pop(name) + source  # behind what it needs


def _refer(
    user: str, name: str, value: Any, imports: dict[str, str], values: dict[str, str],
    sources: dict[str, str],
) -> None:  # fmt: skip
    """Make a global name that `user` needs exist on the worker."""
    value = getattr(value, "function", value) if type(value).__name__ == "TaskFunction" else value
    if isinstance(value, types.ModuleType):
        imports[name] = f"import {value.__name__} as {name}"
    elif isinstance(value, types.FunctionType | type):
        module = sys.modules.get(value.__module__)
        if (
            module is not None
            and getattr(module, "__file__", None)
            and value.__module__ != "__main__"
        ):
            imports[name] = f"from {value.__module__} import {value.__name__} as {name}"
        elif value.__name__ == name:
            _gather(value, imports, values, sources)
        else:
            raise InvalidArgumentError(
                f"{user} uses {name}, another name of {value.__name__}: use that"
            )
    elif _is_plain(value):
        values[name] = f"{name} = {value!r}"
    elif callable(value) and getattr(value, "__module__", None) and hasattr(value, "__name__"):
        imports[name] = f"from {value.__module__} import {value.__name__} as {name}"
    else:
        raise InvalidArgumentError(
            f"{user} uses {name}, a {type(value).__name__} of this session, which cannot travel: "
            "make it inside the function, or hand its parts over as arguments"
        )


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_plain(each) for each in value)
    if isinstance(value, dict):
        return all(_is_plain(k) and _is_plain(v) for k, v in value.items())
    return (
        isinstance(value, _PLAIN) and value == value and value not in (float("inf"), -float("inf"))
    )


def _source(thing: types.FunctionType | type) -> str:
    """Its source without `@hyper.task`."""
    try:
        text = _class_source(thing) if isinstance(thing, type) else inspect.getsource(thing)
        text = textwrap.dedent(text)
    except (OSError, TypeError):
        raise InvalidArgumentError(
            f"the source of {thing.__name__} cannot be read: define it in a file or a notebook cell"
        ) from None
    node = ast.parse(text).body[0]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        node.decorator_list = [
            each for each in node.decorator_list if not _MARK.match(ast.unparse(each))
        ]
    return ast.unparse(node)


def _class_source(thing: type) -> str:
    """Of a class of a notebook's cell, which `inspect` does not find; its methods know the cell.

    Raises:
        OSError: it cannot be found.
    """
    for function in _methods(thing):
        lines = linecache.getlines(function.__code__.co_filename)
        text = "".join(lines)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and node.name == thing.__name__:
                return ast.get_source_segment(text, node) or ""
    return inspect.getsource(thing)


def _methods(thing: type) -> Iterator[types.FunctionType]:
    for member in vars(thing).values():
        function = getattr(member, "__func__", member)
        if isinstance(function, types.FunctionType):
            yield function


def _scope(thing: type) -> dict[str, Any]:
    """The globals that a class's body was run with."""
    for function in _methods(thing):
        return function.__globals__
    module = sys.modules.get(thing.__module__)
    return vars(module) if module is not None else {}


def _names(source: str) -> list[str]:
    """Every name that a source reads, in order."""
    found = {node.id: None for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    return list(found)
