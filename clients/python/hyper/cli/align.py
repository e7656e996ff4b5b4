"""`hyper align` and `hyper data`: from a folder of sections to an aligned array and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyper.cli import output

data_app = typer.Typer(help="Sample data: real sections to try things on.", no_args_is_help=True)


def _voxel_size(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter("write z,y,x in nanometres, such as 40,4,4") from None
    return z, y, x


def align(
    source: Annotated[
        str,
        typer.Argument(help="folder of PNG / TIFF sections in name order, or tenant/name/array"),
    ],
    destination: Annotated[str, typer.Argument(help="tenant/name")],
    report: Annotated[
        Path | None, typer.Option(help="also write the HTML report to this file")
    ] = None,
    result: Annotated[
        Path | None, typer.Option(help="also write the result object (JSON) to this file")
    ] = None,
    voxel_size: Annotated[str | None, typer.Option(help="z,y,x in nm, such as 40,4,4")] = None,
    template: Annotated[int, typer.Option(help="template edge, px (0: chosen)", min=0)] = 0,
    search: Annotated[int, typer.Option(help="fine search radius, px (0: chosen)", min=0)] = 0,
    spacing: Annotated[float, typer.Option(help="mesh spacing, px (0: chosen)", min=0)] = 0.0,
    neighbours: Annotated[int, typer.Option(help="following sections to match", min=1, max=8)] = 3,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="leave unreadable sections blank; they are reported")
    ] = False,
    order: Annotated[
        Path | None, typer.Option(help="file with a section's name a line, in z order")
    ] = None,
    exclude: Annotated[
        str, typer.Option(help="sections to be left blank: numbers or names, a,b,c")
    ] = "",
    mask: Annotated[
        Path | None, typer.Option(help="folder of images named as the sections: 0 is no tissue")
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(help="file of pairs of points of the same tissue, z,y,x,z,y,x a line, px"),
    ] = None,
    method: Annotated[
        str, typer.Option(help="elastic, or deep: refined by displacement fields (needs torch)")
    ] = "elastic",
    from_fields: Annotated[
        str,
        typer.Option(help="tenant/name[@v]/fields of an alignment, to be used instead of matches"),
    ] = "",
    keep_intermediates: Annotated[
        bool, typer.Option("--keep-intermediates", help="commit features and matches too")
    ] = False,
    title: Annotated[str, typer.Option(help="of the report")] = "",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="go on with the newest alignment into the destination: what is done stays done",
        ),
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="the last line is the result object")
    ] = False,
) -> None:
    """Align a stack of serial sections.

    Exit status 1: the stack was aligned and stored, but neighbours could not be joined; they are
    named. A job that failed, was interrupted, or whose command was lost goes on with the same
    command and --resume.
    """
    from hyper.align import AlignOptions
    from hyper.align_source import read_points
    from hyper.cli.align_run import run

    options = AlignOptions(
        voxel_size_nm=_voxel_size(voxel_size),
        template_px=template,
        search_px=search,
        spacing_px=spacing,
        neighbours=neighbours,
        skip_bad=skip_bad,
        title=title,
        keep_intermediates=keep_intermediates,
        exclude=tuple(part.strip() for part in exclude.split(",") if part.strip()),
        points=() if points is None else read_points(points),
        method=method,
        from_fields=from_fields,
    )
    run(
        source, destination, options, report=report, result_file=result, as_json=json_output,
        order=order, masks=mask, resume=resume,
    )  # fmt: skip


@data_app.command("fetch")
def fetch(
    json_output: Annotated[bool, typer.Option("--json", help="print a JSON object")] = False,
) -> None:
    """Bring the public sample stack (ten unaligned sections, 10 MB) into the cache."""
    from hyper import sample_data

    folder = sample_data.fetch(progress=not json_output)
    output.emit({"folder": str(folder)}, f"sections are in {folder}", as_json=json_output)


@data_app.command("where")
def where(
    json_output: Annotated[bool, typer.Option("--json", help="print a JSON object")] = False,
) -> None:
    """Say which folder of sample sections would be used."""
    from hyper import sample_data

    folder = sample_data.find()
    text = str(folder) if folder else "no sample data here: run `hyper data fetch`"
    output.emit({"folder": str(folder) if folder else None}, text, as_json=json_output)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("align")(align)
    app.add_typer(data_app, name="data")
