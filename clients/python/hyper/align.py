"""Align a stack of serial sections: check the source, write the recipe, follow the job.

The work itself is done by `hyper_matcher.jobs` on workers; here is what happens on the caller's
machine. Everything goes into one session of the destination dataset, which becomes visible with
the last task's commit, or not at all.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from hyper.align_source import Source
from hyper.errors import HyperError, InvalidArgumentError, NotFoundError, WorkFailedError
from hyper.names import Address, array_address, parse_address
from hyper.pyramids import levels_of
from hyper.status import RunState

if TYPE_CHECKING:
    from hyper.client import Client
    from hyper.workflows import Workflow, WorkflowStatus

SETTINGS_FILE = "align/settings.json"
RESULT_FILE = "align/result.json"
REPORT_FILE = "align/report.html"
METHODS = ("elastic", "deep")
SHARD_PX = 4096  # of large sections' arrays: written by one hand
BLOCK_PX = 2048  # sections of more than half as much again are matched block by block
RELAX_FACTOR = 8.0  # at most, between the spacings of two meshes of one section
RELAX_TURNS = 2  # of exchange between the tiles of a mesh
_SMALL_TEMPLATE_PX = 96
Say = Callable[[str], None]
# What the matcher service takes (hyper_matcher.align.match).
_LIMITS_PX = {"template_px": (16, 4096), "search_px": (1, 4096), "spacing_px": (4, 65536)}


@dataclass(frozen=True, slots=True)
class AlignOptions:
    """What a user may choose; zero means: chosen from the data, and said in the report.

    Args:
        voxel_size_nm: (z, y, x).
        template_px: edge of a template.
        search_px: radius of the fine search round the coarse guess.
        spacing_px: of the mesh.
        neighbours: each section is matched with so many following ones.
        skip_bad: leave unreadable sections blank instead of refusing the stack.
        title: of the report.
        keep_intermediates: commit features and matches too.
        exclude: sections, by number or file name, that are left blank.
        points: pairs of points known to be the same tissue: (z, y, x, z, y, x), px.
        method: "elastic", or "deep": refined by displacement fields; workers need torch.
        from_fields: `tenant/name[@version]/fields` of an alignment, used in place of matches.
        relax_vertices: if the mesh of all sections has more, a coarser one of so many is relaxed as
            one, and the finer ones tile by tile, about four times so many a task.
        part_px: larger sections are filtered, rendered and measured part by part; a multiple of
            4,096.
        level_voxels: coarser levels of the pyramid that are made from more have tasks of their own,
            one a shard.
    """

    voxel_size_nm: tuple[float, float, float] | None = None
    template_px: int = 0
    search_px: int = 0
    spacing_px: float = 0.0
    neighbours: int = 3
    skip_bad: bool = False
    title: str = ""
    keep_intermediates: bool = False
    exclude: tuple[str, ...] = ()
    points: tuple[tuple[float, ...], ...] = ()
    method: str = "elastic"
    from_fields: str = ""
    relax_vertices: int = 200_000
    part_px: int = 8 * SHARD_PX
    level_voxels: int = 2**29

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidArgumentError(
                f"{self.method}: no such method; choose {' or '.join(METHODS)}", field="method"
            )
        if self.relax_vertices < 1000:
            raise InvalidArgumentError("relax_vertices: at least 1000", field="relax_vertices")
        if self.part_px < SHARD_PX or self.part_px % SHARD_PX:
            raise InvalidArgumentError(f"part_px: a multiple of {SHARD_PX}", field="part_px")
        if not 1 <= self.neighbours <= 8:
            raise InvalidArgumentError("neighbours must be from 1 to 8", field="neighbours")
        for name, (low, high) in _LIMITS_PX.items():
            value = getattr(self, name)
            if value != 0 and not low <= value <= high:
                raise InvalidArgumentError(
                    f"{name} is {value}: choose {low} to {high}, or 0 to have it chosen", field=name
                )
        if self.voxel_size_nm is not None and not all(
            0 < length < math.inf for length in self.voxel_size_nm
        ):
            raise InvalidArgumentError(
                "voxel sizes must be positive numbers of nanometres", field="voxel_size"
            )


@dataclass(slots=True)
class AlignJob:
    """A submitted alignment."""

    workflow: Workflow
    session: str
    destination: str


def check_points(source: Source, options: AlignOptions) -> None:
    """Refuse points that are in no section, or join a section with itself.

    Raises:
        InvalidArgumentError: names the pair.
    """
    depth, height, width = source.shape
    for pair in options.points:
        ends = pair[:3], pair[3:]
        inside = all(
            z == int(z) and 0 <= z < depth and 0 <= y < height and 0 <= x < width
            for z, y, x in ends
        )
        if not inside or pair[0] == pair[3]:
            raise InvalidArgumentError(
                f"the points {', '.join(f'{v:g}' for v in pair)} are not in two of {depth} "
                f"sections of {height} x {width} px",
                field="points",
            )


def check_lengths(source: Source, options: AlignOptions) -> None:
    """Refuse lengths that the sections have no room for.

    Raises:
        InvalidArgumentError: a template or spacing over half of the shorter edge, or a search that
            with its template does not fit.
    """
    edge = min(source.shape[1:])
    if options.template_px > edge // 2:
        raise InvalidArgumentError(
            f"templates of {options.template_px} px are too large for sections of "
            f"{source.shape[1]} x {source.shape[2]} px: at most {edge // 2} px, or 0 to have the "
            "edge chosen",
            field="template_px",
        )
    room = (edge - (options.template_px or edge // 4)) // 2
    if options.search_px > room:
        raise InvalidArgumentError(
            f"a search of {options.search_px} px round a template leaves sections of "
            f"{source.shape[1]} x {source.shape[2]} px: at most {room} px, or 0 to have it chosen",
            field="search_px",
        )
    if options.spacing_px > edge // 2:
        raise InvalidArgumentError(
            f"a mesh spacing of {options.spacing_px:g} px is too coarse for sections of "
            f"{source.shape[1]} x {source.shape[2]} px: at most {edge // 2} px, or 0 to have it "
            "chosen",
            field="spacing_px",
        )


def recipe(session: str, source: Source, options: AlignOptions, *, name: str) -> str:
    """The job as YAML: every stage an experiment, every task a function of `hyper_matcher.jobs`."""
    sections = source.shape[0]
    each: dict[str, Any] = {"z": {"range": [0, sections]}}

    def stage(function: str, after: Sequence[str], parameters: dict[str, Any]) -> dict[str, Any]:
        return {
            "function": f"hyper_matcher.jobs:{function}",
            "depends_on": list(after),
            "parameters": {"session": session, **parameters},
            "retries": 3,
            "timeout": "1h",
        }

    experiments = {"prepare": stage("prepare", [], {})}
    before = "prepare"
    if source.files:
        experiments["ingest"] = stage("ingest", [before], each)
        before = "ingest"
    count = len(parts(source.shape[1:], options.part_px))
    canvas = "fields" if options.from_fields else "relax"  # who decides it
    of_canvas = {"part": {"from": f"{canvas}/canvas-parts"}} if count > 1 else {}
    if options.from_fields:
        experiments["fields"] = stage("take_fields", [before], {})
        before = "fields"
    else:
        of_source = {"part": {"range": [0, count]}} if count > 1 else {}
        experiments["features"] = stage("features", [before], each | of_source)
        by_block = {
            "z": {"range": [0, sections - 1]},
            "block": {"range": [0, len(blocks(source.shape))]},
        }
        before = "features"
        by_section = {"z": {"range": [0, sections - 1]}}
        in_blocks = len(blocks(source.shape)) > 1
        if in_blocks:
            experiments["coarse"] = stage("coarse", [before], by_section)
            before = "coarse"
        experiments["match"] = stage("match", [before], by_block)
        before = "match"
        if in_blocks:
            experiments["gather"] = stage("gather", [before], by_section)
            before = "gather"
        experiments["relax"] = stage("relax", [before], {})
        before = "relax"
        for level in range(1, relax_levels(source.shape, asdict(options)) + 1):
            for turn in range(1, RELAX_TURNS + 1):
                name_of = f"settle-{level}-{turn}"
                tiles = {"level": level, "turn": turn, "tile": {"from": f"relax/level-{level}"}}
                experiments[name_of] = stage("settle", [before], tiles)
                before = name_of
        if before != "relax":
            experiments["place"] = stage("place", [before], {"part": {"from": "relax/parts"}})
            before = "place"
    experiments["render"] = stage("render", [before], each | of_canvas)
    placed = before = "render"
    if options.method == "deep":
        tiles = {"tile": {"from": f"{canvas}/refine-tiles"}}
        experiments["refine"] = stage("refine", ["render"], each | tiles)
        experiments["redraw"] = stage("redraw", ["refine"], each | of_canvas)
        placed = before = "redraw"
    experiments["measure"] = stage("measure", [placed], each | of_canvas)
    for level in range(1, levels_apart(source.shape, asdict(options)) + 1):
        by_shard = {"level": level, "shard": {"from": f"{canvas}/shards-{level}"}}
        experiments[f"coarsen-{level}"] = stage("coarsen", [before], by_shard)
        before = f"coarsen-{level}"
    ends = ["measure"] if before == placed else ["measure", before]
    experiments["report"] = stage("report", ends, {})
    document = {"version": 1, "name": name, "experiments": experiments}
    return yaml.safe_dump(document, sort_keys=False)


def parts(shape: Sequence[int], part_px: int) -> list[tuple[int, int, int, int]]:
    """(y0, x0, y1, x1) of the parts of a plane (y, x) that one task filters, renders or measures.

    They begin where shards of arrays do, so that every shard is written by one hand.
    """
    height, width = shape
    return [
        (y, x, min(y + part_px, height), min(x + part_px, width))
        for y in range(0, height, part_px)
        for x in range(0, width, part_px)
    ]


def blocks(
    shape: tuple[int, int, int], block_px: int = BLOCK_PX
) -> list[tuple[int, int, int, int]]:
    """(y0, x0, y1, x1) of the parts of a section that are matched one by one, ends excluded.

    One for sections that fit; memory is then bounded by a block, whatever the section.

    Args:
        shape: (z, y, x).
        block_px: about their edge; a section of half as much again is one.
    """
    spans = []
    for edge in shape[1:]:
        count = max(1, round(edge / block_px)) if edge > 1.5 * block_px else 1
        ends = np.linspace(0, edge, count + 1).round().astype(int).tolist()
        spans.append(list(itertools.pairwise(ends)))
    return [(y0, x0, y1, x1) for y0, y1 in spans[0] for x0, x1 in spans[1]]


def levels_apart(shape: Sequence[int], options: Mapping[str, Any]) -> int:
    """How many levels of the pyramid have tasks of their own; the last stage makes the others.

    Args:
        shape: (z, y, x) of the source; the canvas is little larger.
        options: `AlignOptions` as a mapping.
    """
    if not options["voxel_size_nm"]:
        return 0
    volumes = [shape, *(each.shape for each in levels_of(shape, options["voxel_size_nm"]))]
    return sum(math.prod(each) > options["level_voxels"] for each in volumes[:-1])


def relax_levels(shape: Sequence[int], options: Mapping[str, Any]) -> int:
    """How many meshes, at most, are relaxed tile by tile: none where all fit one task.

    Args:
        shape: (z, y, x).
        options: `AlignOptions` as a mapping.
    """
    template_px = options["template_px"] or _SMALL_TEMPLATE_PX  # the job may choose a larger one
    mesh_px = mesh_spacing_px(float(options["spacing_px"]) or matches_every_px(template_px))
    return len(mesh_spacings(shape, mesh_px, options["relax_vertices"])) - 1


def matches_every_px(template_px: int) -> float:
    """The usual spacing of matches."""
    return max(8.0, 0.3 * template_px)


def mesh_spacing_px(matches_px: float) -> float:
    """The mesh's, a little finer than the matches'."""
    return max(8.0, matches_px * 40.0 / 48.0)


def mesh_spacings(
    shape: Sequence[int], spacing_px: float, relax_vertices: int
) -> tuple[float, ...]:
    """Spacings of the meshes that are relaxed, from the coarsest to the finest, px.

    Args:
        shape: (z, y, x).
        spacing_px: of the finest.
        relax_vertices: of all sections, that the coarsest has at most, if it can.
    """
    coarsest = spacing_px

    def vertices() -> int:
        rows, columns = (max(2, round((edge - 1) / coarsest) + 1) for edge in shape[1:])
        return shape[0] * rows * columns

    while vertices() > relax_vertices and coarsest < min(shape[1:]):
        coarsest *= 1.25
    steps = math.ceil(math.log(coarsest / spacing_px, RELAX_FACTOR) - 1e-9)
    ratio = (spacing_px / coarsest) ** (1 / max(1, steps))
    return (*(coarsest * ratio**k for k in range(steps)), spacing_px)


def check_destination(destination: str) -> Address:
    """Read `tenant/name`.

    Raises:
        InvalidArgumentError: it is anything else.
    """
    address = parse_address(destination)
    if address.array is not None or address.version is not None:
        raise InvalidArgumentError(
            f"{destination}: the destination is a dataset: write tenant/name", field="destination"
        )
    return address


def submit(
    client: Client, source: Source, destination: str, options: AlignOptions, *, say: Say
) -> AlignJob:
    """Open a session on the destination, upload the sections, start the job.

    On any error, and on Ctrl-C, the session is aborted: nothing half-written stays.
    """
    address = check_destination(destination)
    check_lengths(source, options)
    check_points(source, options)
    options = _pinned(client, options)
    session = client.session(destination)
    try:
        names = [f"sections/{z:06d}{file.suffix.lower()}" for z, file in enumerate(source.files)]
        bad = {section.z for section in source.bad}
        if names:
            say(f"uploading {len(names) - len(bad)} sections to {destination}")
            session.write_many(_contents(source.files, names, bad))
            session.write_many(
                (_mask_name(z, file), file.read_bytes())
                for z, file in enumerate(source.masks)
                if file is not None and z not in bad
            )
        files = [None if z in bad else name for z, name in enumerate(names)]
        session.write(SETTINGS_FILE, job_settings(source, options, destination, files))
        text = recipe(session.name, source, options, name=_job_name(address))
        workflow = client.submit(text)
    except BaseException:
        session.abort()
        raise
    say(f"submitted {workflow.name}: {source.shape[0]} sections, to {destination}")
    return AlignJob(workflow, session.name, destination)


def _job_name(address: Address) -> str:
    return f"align-{address.dataset}"[:64]


def _pinned(client: Client, options: AlignOptions) -> AlignOptions:
    """With the version of the fields that are used, whatever is committed later."""
    if not options.from_fields:
        return options
    return replace(options, from_fields=array_address(client.open_array(options.from_fields).name))


def resume(
    client: Client,
    label: str,
    destination: str,
    options: AlignOptions,
    *,
    names: Sequence[str] | None = None,
    say: Say,
) -> AlignJob:
    """Go on with the newest alignment into a dataset: what is done stays done.

    A job that runs is followed, one that failed or was cancelled is tried again from where it
    stopped, one that has succeeded gives its result.

    Args:
        client: of the cluster.
        label: the source as it was named, an array with or without its version.
        destination: `tenant/name`.
        options: those it was started with.
        names: of a folder's sections, in z order, where the folder is still there.
        say: told what is done.

    Raises:
        NotFoundError: there is none, or what it wrote has expired.
        InvalidArgumentError: it was started from other sections or with other options.
    """
    address = check_destination(destination)
    found = _newest(client, address)
    if found is None:
        raise NotFoundError(
            f"no alignment into {destination} to go on with; start it without --resume"
        )
    workflow, session = found
    done = workflow.state is RunState.SUCCEEDED
    try:
        written = client.open_dataset(destination) if done else client.attach(session)
        settings = json.loads(written.read(SETTINGS_FILE))
    except HyperError as error:
        if error.reason != "SESSION_CLOSED" and not isinstance(error, NotFoundError):
            raise
        raise NotFoundError(
            f"what {workflow.name} had written to {destination} is gone (kept for a day after its "
            "last use); start again without --resume"
        ) from error
    _check_same(settings, workflow.name, label, _pinned(client, options), names)
    if workflow.state in (RunState.FAILED, RunState.CANCELLED):
        workflow.retry()
    elif workflow.status.paused:
        workflow.resume()
    tasks = workflow.status.tasks
    say(f"going on with {workflow.name}: {tasks.succeeded} of {tasks.total} tasks are done")
    return AlignJob(workflow, session, destination)


def _newest(client: Client, address: Address) -> tuple[Workflow, str] | None:
    """The newest alignment into a dataset, and its session."""
    sessions = f"tenants/{address.tenant}/datasets/{address.dataset}/sessions/"
    for status in client.workflows():  # the newest first
        if status.display_name != _job_name(address):
            continue
        workflow = client.workflow(status.name)
        stages = yaml.safe_load(workflow.status.recipe_yaml)["experiments"]
        session = str(stages.get("prepare", {}).get("parameters", {}).get("session", ""))
        if session.startswith(sessions):
            return workflow, session
    return None


def _check_same(
    settings: dict[str, Any],
    job: str,
    label: str,
    options: AlignOptions,
    names: Sequence[str] | None,
) -> None:
    """Refuse to go on with a job that was about something else.

    Raises:
        InvalidArgumentError: names what differs.
    """
    dataset, _, rest = settings["array"].partition("@")
    unpinned = f"{dataset}/{rest.partition('/')[2]}"
    if label not in (settings["source"], unpinned):
        raise InvalidArgumentError(
            f"{job} aligns {settings['source']}, not {label}; start without --resume",
            field="source",
        )
    if names is not None and settings["names"] != list(names):
        raise InvalidArgumentError(
            f"the sections of {label}, or their order, are not those that {job} began with; start "
            "without --resume",
            field="source",
        )
    before, now = settings["options"], json.loads(json.dumps(asdict(options)))
    for key, value in before.items():
        if now[key] != value:
            raise InvalidArgumentError(
                f"{job} was started with {key} {value!r}, not {now[key]!r}; give the same, or "
                "start without --resume",
                field=key,
            )


def job_settings(
    source: Source, options: AlignOptions, destination: str, files: Sequence[str | None] = ()
) -> bytes:
    """What the session's `SETTINGS_FILE` tells the tasks of `recipe`.

    Args:
        source: what is aligned.
        options: how.
        destination: `tenant/name`.
        files: of a folder's sections, by z, in the session; None for those left out.
    """
    settings = {
        "options": asdict(options),
        "source": source.label,
        "array": source.array,
        "shape": source.shape,
        "dtype": source.dtype,
        "files": list(files),
        "names": [file.name for file in source.files],
        "masks": [
            None if file is None else _mask_name(z, file) for z, file in enumerate(source.masks)
        ],
        "bad": [asdict(section) for section in source.bad],
        "destination": destination,
    }
    return json.dumps(settings, indent=1).encode()


def _mask_name(z: int, file: Path) -> str:
    return f"masks/{z:06d}{file.suffix.lower()}"


def _contents(
    files: Sequence[Path], names: Sequence[str], bad: set[int]
) -> Iterator[tuple[str, bytes]]:
    """(path in the dataset, bytes) of every good section, one in memory at a time."""
    for z, (file, name) in enumerate(zip(files, names, strict=True)):
        if z not in bad:
            yield name, file.read_bytes()


def finish(
    client: Client, job: AlignJob, *, on_update: Callable[[WorkflowStatus], None] | None = None
) -> dict[str, Any]:
    """Wait for the job's end; returns its result object.

    Raises:
        WorkFailedError: the workflow failed or was cancelled. Its session is kept until it expires,
            for `resume`.
    """
    status = job.workflow.wait(on_update=on_update)
    if status.state != "SUCCEEDED":
        raise WorkFailedError(
            f"{job.workflow.name} {status.state.lower()}: {status.message}; see "
            f"`hyper logs {job.workflow.name}`"
        )
    dataset = client.open_dataset(job.destination)
    result: dict[str, Any] = json.loads(dataset.read(RESULT_FILE))
    result["array_url"] = client.open_array(result["array"]).url
    return result


def abandon(client: Client, session: str) -> None:
    """Drop what a job that will not finish has written; a commit that came first stands."""
    try:
        client.attach(session).abort()
    except HyperError as error:
        if error.reason != "SESSION_CLOSED":
            raise
