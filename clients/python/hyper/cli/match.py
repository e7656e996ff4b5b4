"""`hyper match`: where the tissue of one section lies in another, on the cluster's matchers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyper.cli import output
from hyper.errors import InvalidArgumentError

if TYPE_CHECKING:
    from hyper.compute_matching import PairMatches

_COLUMNS = "source_z,target_z,y,x,dy,dx,p1,p2,rejection"


def match(
    source: Annotated[str, typer.Argument(help="tenant/name[@v]/array of sections (z, y, x)")],
    pairs: Annotated[str | None, typer.Option(help="such as 0-1,0-2 (default: all)")] = None,
    neighbours: Annotated[int, typer.Option(help="without --pairs: z with z+1 ...", min=1)] = 1,
    template: Annotated[int, typer.Option(help="template edge, px (0: chosen)", min=0)] = 0,
    search: Annotated[int, typer.Option(help="first search radius, px (0: chosen)", min=0)] = 0,
    spacing: Annotated[float, typer.Option(help="of the points, px (0: chosen)", min=0)] = 0.0,
    table: Annotated[
        Path | None, typer.Option(help="write every match, rejected ones too, to this CSV file")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="print a JSON object")] = False,
) -> None:
    """Match pairs of sections; says what was accepted, and why the rest was not."""
    from hyper.cli.job import check_writable
    from hyper.client import Client

    check_writable(table)
    found = []
    with Client(notice=output.say) as client, output.progress() as progress:
        array = client.open_array(source)
        wanted = _pairs(pairs) if pairs else _neighbours(array.shape[0], neighbours)
        bar = progress.add_task("matching", total=len(wanted))
        lines = [_COLUMNS]
        for pair in client.match_sections(
            array, wanted, template_px=template, search_px=search, spacing_px=spacing
        ):
            found.append(_facts(pair))
            if table is not None:
                lines += _rows(pair)
            progress.advance(bar)
    if table is not None:
        table.write_text("\n".join(lines) + "\n")
    rows = [
        (
            f"{one['source_z']} - {one['target_z']}", one["accepted"], one["median_p1_p2"],
            ", ".join(f"{reason} {number}" for reason, number in one["rejected"].items()) or "-",
            one["flag"] or "-",
        )
        for one in found
    ]  # fmt: skip
    headings = ("PAIR", "ACCEPTED", "P1-P2", "REJECTED", "FLAG")
    output.emit({"pairs": found}, output.table(headings, rows), as_json=json_output)


def _pairs(text: str) -> list[tuple[int, int]]:
    try:
        split = [part.split("-") for part in text.split(",")]
        return [(int(first), int(second)) for first, second in split]
    except ValueError:
        raise typer.BadParameter("write pairs of sections, such as 0-1,0-2") from None


def _neighbours(depth: int, reach: int) -> list[tuple[int, int]]:
    found = [(z, z + d) for z in range(depth) for d in range(1, reach + 1) if z + d < depth]
    if not found:
        raise InvalidArgumentError("one section only: there is no pair to match")
    return found


def _facts(pair: PairMatches) -> dict[str, Any]:
    from hyperapi.matcher.v1 import matcher_service_pb2 as api

    accepted = pair.rejection == 0
    reasons = Counter(
        api.Rejection.Name(number).removeprefix("REJECTION_").lower()
        for number in pair.rejection[~accepted].tolist()
    )
    distinct = median((pair.p1 - pair.p2)[accepted]) if accepted.any() else None
    return {
        "source_z": pair.source_z, "target_z": pair.target_z, "accepted": int(accepted.sum()),
        "median_p1_p2": None if distinct is None else round(float(distinct), 3),
        "rejected": dict(reasons.most_common()), "flag": pair.flag,
        "matrix": pair.coarse.matrix.tolist(), "offset": pair.coarse.offset.tolist(),
    }  # fmt: skip


def _rows(pair: PairMatches) -> list[str]:
    from hyperapi.matcher.v1 import matcher_service_pb2 as api

    columns = zip(
        pair.source.tolist(), pair.displacement.tolist(), pair.p1.tolist(), pair.p2.tolist(),
        pair.rejection.tolist(), strict=True,
    )  # fmt: skip
    return [
        f"{pair.source_z},{pair.target_z},{y:.2f},{x:.2f},{dy:.3f},{dx:.3f},{p1:.4f},{p2:.4f},"
        + ("" if not why else api.Rejection.Name(why).removeprefix("REJECTION_").lower())
        for (y, x), (dy, dx), p1, p2, why in columns
    ]


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("match")(match)
