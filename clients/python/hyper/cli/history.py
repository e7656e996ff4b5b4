"""`hyper tag | diff | gc | scrub`: versions, and the health of what they hold."""

from __future__ import annotations

from typing import Annotated

import typer

from hyper.cli import complete, output
from hyper.errors import DataLossError, InvalidArgumentError
from hyper.names import parse_address

_Json = Annotated[bool, typer.Option("--json", help="print JSON")]
_SIGNS = {"added": "+", "removed": "-", "modified": "~"}
_PROBLEMS_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("tag")(tag)
    app.command("diff")(diff)
    app.command("gc")(gc)
    app.command("scrub")(scrub)


def tag(
    dataset: Annotated[
        str, typer.Argument(help="tenant/name[@version]", autocompletion=complete.datasets)
    ],
    name: Annotated[
        str | None, typer.Argument(help="of the tag; without it tags are listed")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="remove the tag")] = False,
    json_output: _Json = False,
) -> None:
    """Let a tag name a version (the newest by default): tenant/name@TAG then means it."""
    from hyper.client import connect
    from hyper.history import delete_tag, list_tags, set_tag

    address = parse_address(dataset)
    if address.array is not None:
        raise InvalidArgumentError("tags name versions of a dataset: write tenant/name[@version]")
    with connect(notice=output.say) as client:
        if name is None:
            tags = list_tags(client, dataset)
            text = output.table(("TAG", "VERSION"), list(tags.items()))
            output.emit(tags, text if tags else f"{dataset} has no tags", as_json=json_output)
            return
        if delete:
            delete_tag(client, dataset, name)
            output.emit({"deleted": name}, f"tag {name} is deleted", as_json=json_output)
            return
        version = client.open_dataset(dataset).version
        set_tag(client, dataset, name, version)
    value = {"tag": name, "version": version}
    text = f"{address.tenant}/{address.dataset}@{name} is version {version}"
    output.emit(value, text, as_json=json_output)


def diff(
    base: Annotated[
        str, typer.Argument(help="tenant/name@version", autocompletion=complete.datasets)
    ],
    target: Annotated[
        str, typer.Argument(help="tenant/name[@version]", autocompletion=complete.datasets)
    ],
    prefix: Annotated[str, typer.Option("--prefix", help="only names that begin so")] = "",
    json_output: _Json = False,
) -> None:
    """List the files and arrays that differ between two versions."""
    from hyper import history
    from hyper.client import connect

    with connect(notice=output.say) as client:
        found = list(history.diff(client, base, target, prefix=prefix))
    value = [
        {"change": d.change, "kind": d.kind, "name": d.name, "before": d.before, "after": d.after}
        for d in found
    ]
    lines = [f"{_SIGNS[d.change]} {d.name}{'/' if d.kind == 'array' else ''}" for d in found]
    text = "\n".join(lines) if found else "no difference"
    output.emit(value, text, as_json=json_output)


def gc(
    apply: Annotated[bool, typer.Option("--apply", help="delete; without it only count")] = False,
    grace_s: Annotated[
        float | None, typer.Option("--grace-s", help="younger objects stay; default one hour")
    ] = None,
    json_output: _Json = False,
) -> None:
    """Find, and with --apply delete, objects that no version and no open session needs."""
    from hyper.client import connect
    from hyper.history import Garbage, collect_garbage

    found = Garbage(0, 0, 0, 0, apply)
    with connect(notice=output.say) as client, output.progress() as progress:
        task = progress.add_task("looking at objects", total=None)
        for found in collect_garbage(client, apply=apply, grace_s=grace_s):
            progress.update(task, completed=found.kept_objects + found.garbage_objects)
    value = {
        "kept_objects": found.kept_objects, "kept_bytes": found.kept_bytes,
        "garbage_objects": found.garbage_objects, "garbage_bytes": found.garbage_bytes,
        "applied": found.applied,
    }  # fmt: skip
    verb = "deleted" if apply else "would be deleted (give --apply)"
    text = (
        f"{found.garbage_objects} object(s), {output.human_bytes(found.garbage_bytes)}, {verb}; "
        f"{found.kept_objects} kept, {output.human_bytes(found.kept_bytes)}"
    )
    output.emit(value, text, as_json=json_output)


def scrub(
    dataset: Annotated[
        str, typer.Argument(help="tenant/name[@version]", autocompletion=complete.datasets)
    ],
    json_output: _Json = False,
) -> None:
    """Read everything that a version holds and compare it with its checksums."""
    from hyper import history
    from hyper.client import connect

    problems: list[history.Checked] = []
    count = size = 0
    with connect(notice=output.say) as client, output.progress() as progress:
        opened = client.open_dataset(dataset)
        task = progress.add_task("reading", total=None)
        for checked in history.scrub(opened):
            count, size = count + 1, size + checked.size_bytes
            if checked.problem:
                problems.append(checked)
            progress.advance(task)
    value = {
        "version": opened.version, "checked": count, "bytes": size,
        "damaged": [{"kind": p.kind, "name": p.name, "problem": p.problem} for p in problems],
    }  # fmt: skip
    lines = [f"damaged {p.kind} {p.name}: {p.problem}" for p in problems[:_PROBLEMS_SHOWN]]
    lines.append(
        f"{count} file(s) and shard(s), {output.human_bytes(size)}, read: {len(problems)} damaged"
    )
    output.emit(value, "\n".join(lines), as_json=json_output)
    if problems:
        raise DataLossError(f"{dataset}@{opened.version}: {len(problems)} damaged")
