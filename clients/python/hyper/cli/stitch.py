"""`hyper stitch`: from overlapping tiles and their positions to montages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hyper.cli import output


def stitch(
    positions: Annotated[
        list[Path],
        typer.Argument(
            help="where the tiles lie: FEABAS text, TrakEM2 XML, Render JSON, OME-XML or OME-TIFF; "
            "one file a section, or one of all"
        ),
    ],
    destination: Annotated[str, typer.Argument(help="tenant/name")],
    images: Annotated[
        Path | None, typer.Option(help="folder of the tiles, if the positions say another")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="also write the HTML report there")] = None,
    result: Annotated[Path | None, typer.Option(help="also write the result object there")] = None,
    montages: Annotated[
        Path | None, typer.Option(help="also write each montage as an image into this folder")
    ] = None,
    montage_format: Annotated[
        str, typer.Option("--format", help="of --montages: png or tiff")
    ] = "png",
    search: Annotated[
        int, typer.Option(help="how far tiles may be off, px (0: chosen)", min=0)
    ] = 0,
    lens_degree: Annotated[
        int, typer.Option(help="of the lens polynomial (-1: chosen, 0: none)", min=-1, max=7)
    ] = -1,
    min_overlap: Annotated[
        int, typer.Option(help="thinner overlaps are not looked at, px", min=8)
    ] = 16,
    illumination: Annotated[bool, typer.Option(help="even out brightness")] = True,
    pixel: Annotated[
        float, typer.Option(help="size of a pixel, nm (0: as the positions say)", min=0)
    ] = 0.0,
    thickness: Annotated[float, typer.Option(help="of a section, nm (0: as a pixel)", min=0)] = 0.0,
    skip_missing: Annotated[
        bool,
        typer.Option(
            "--skip-missing", help="stitch without tiles that are missing; they are reported"
        ),
    ] = False,
    title: Annotated[str, typer.Option(help="of the report")] = "",
    json_output: Annotated[
        bool, typer.Option("--json", help="the last line is the result object")
    ] = False,
) -> None:
    """Stitch overlapping tiles into one montage a section, array `raw` of the destination.

    Exit status 1: montages were made, but a tile or an overlap could not be trusted.
    """
    from hyper import stitch as job
    from hyper.align import abandon, check_destination
    from hyper.cli.job import check_writable, client_for, follow
    from hyper.errors import InvalidArgumentError, WorkFailedError
    from hyper.tile_positions import read_layout

    files = positions
    check_destination(destination)
    if montage_format not in ("png", "tiff"):
        raise typer.BadParameter("--format is png or tiff")
    if images is not None and not images.is_dir():
        raise InvalidArgumentError(f"{images}: no such folder", field="images")
    check_writable(report, result)
    if montages is not None and not montages.absolute().parent.is_dir():
        raise InvalidArgumentError(f"{montages}: its folder does not exist; make it first")
    options = job.StitchOptions(
        search, lens_degree, illumination, min_overlap, pixel, thickness, skip_missing, title
    )
    label = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    layout = read_layout(files, images)
    with client_for(destination) as client:
        client.cluster()
        with output.progress() as progress:
            bar = progress.add_task("checking", total=None)
            mosaic = job.inspect(
                layout, label, options,
                on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )  # fmt: skip
        output.say(
            f"{len(mosaic.tiles)} tiles of {mosaic.shape[0]} x {mosaic.shape[1]}, {mosaic.dtype}; "
            f"{len(mosaic.sections)} section(s), {len(mosaic.seams)} overlaps"
        )
        for line in mosaic.left_out:
            output.say(f"warning: left out: {line}")
        workflow, session = job.submit(client, mosaic, destination, options)
        found = follow(
            workflow,
            lambda update: job.finish(client, workflow, session, destination, on_update=update),
            abandon=lambda: abandon(client, session),
        )
        if report is not None:
            report.write_bytes(client.open_dataset(destination).read(job.REPORT_FILE))
            found["report"] = str(report)
        if montages is not None:
            _write_montages(
                client.open_array(found["array"]), mosaic.sections, montages, montage_format
            )
    if result is not None:
        result.write_text(json.dumps(found, indent=1) + "\n")
    output.emit(found, _summary(found), as_json=json_output)
    if found["flagged_tiles"] or found["failed_seams"] or found["left_out"]:
        raise typer.Exit(WorkFailedError.exit_code)


def _write_montages(array: Any, sections: tuple[str, ...], folder: Path, form: str) -> None:
    from hyper.images import write_png, write_tiff

    folder.mkdir(exist_ok=True)
    for z in range(len(sections)):
        write = write_png if form == "png" else write_tiff
        write(folder / f"{z:05d}.{form}", array[z])


def _summary(found: dict[str, Any]) -> str:
    """The result in a few lines."""

    def px(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f} px"

    lines = [
        f"stitched {found['array']}  ({found['array_url']})",
        f"{found['tiles']} tiles, {found['seams']} overlaps, {found['matches']:,} matches",
        f"residual at the seams: {px(found['seam_residual_p50'])} median, "
        f"{px(found['seam_residual_p95'])} p95",
        f"positions were off by {found['stage_error_px']:.1f} px (median); lens: up to "
        f"{found['lens_px']:.1f} px",
    ]
    for seam in found["failed_seams"]:
        lines.append(f"warning: {seam['first']} - {seam['second']}: {seam['why']}")
    for name, why in found["flagged_tiles"].items():
        lines.append(f"warning: {name}: {why}")
    for line in found["left_out"]:
        lines.append(f"warning: left out: {line}")
    if found.get("report"):
        lines.append(f"report: {found['report']}")
    return "\n".join(lines)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("stitch")(stitch)
