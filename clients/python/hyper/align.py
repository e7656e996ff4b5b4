"""Align a stack of serial sections: check the source, write the recipe, follow the job.

The work itself is done by `hyper_matcher.jobs` on workers; here is what happens on the caller's
machine. Everything goes into one session of the destination dataset, which becomes visible with
the last task's commit, or not at all.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from hyper import images
from hyper.errors import HyperError, InvalidArgumentError, WorkFailedError
from hyper.names import Address, parse_address

if TYPE_CHECKING:
    from hyper.client import Client
    from hyper.workflows import Workflow, WorkflowStatus

SETTINGS_FILE = "align/settings.json"
RESULT_FILE = "align/result.json"
REPORT_FILE = "align/report.html"
METHODS = ("elastic", "deep")
BLOCK_PX = 2048  # sections of more than half as much again are matched block by block
SMALLEST_PX = 96  # of a section's shorter edge: below, no block of it can be told from another
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

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidArgumentError(
                f"{self.method}: no such method; choose {' or '.join(METHODS)}", field="method"
            )
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


@dataclass(frozen=True, slots=True)
class BadSection:
    """A section that cannot be used, and why."""

    z: int
    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be aligned.

    Args:
        label: as the user named it.
        shape: (z, y, x).
        dtype: numpy's name.
        files: image files in z order; empty for an array.
        array: address of the source array with its version; empty for a folder.
        bad: sections that were skipped.
        masks: for each file, what is tissue (not 0), or None; empty if no masks were given.
    """

    label: str
    shape: tuple[int, int, int]
    dtype: str
    files: tuple[Path, ...] = ()
    array: str = ""
    bad: tuple[BadSection, ...] = ()
    masks: tuple[Path | None, ...] = ()


@dataclass(slots=True)
class AlignJob:
    """A submitted alignment."""

    workflow: Workflow
    session: str
    source: Source
    destination: str
    notes: list[str] = field(default_factory=list)


def inspect_folder(
    folder: Path,
    *,
    skip_bad: bool = False,
    exclude: Sequence[str] = (),
    order: Path | None = None,
    masks: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Source:
    """Decode every section of a folder once, so that no job starts on input that cannot work.

    Args:
        folder: of PNG or TIFF sections.
        skip_bad: leave unreadable sections blank.
        exclude: sections, by number or file name, to be left blank whatever they hold.
        order: a file with a section's name a line, in z order; by default that of the names.
        masks: folder of images of the same names and sizes, 0 where there is no tissue.
        on_progress: called with (done, all).

    Raises:
        InvalidArgumentError: missing folder, fewer than two sections, an unreadable section (unless
            `skip_bad`), or sections of different sizes or dtypes.
    """
    if not folder.is_dir():
        raise InvalidArgumentError(
            f"{folder}: no such folder; give a folder of PNG or TIFF sections, or "
            "tenant/name/array",
            reason="INVALID_IMAGE",
        )
    files = images.list_sections(folder)
    if order is not None:
        files = read_order(order, files)
    if len(files) < 2:
        raise InvalidArgumentError(
            f"{folder}: {len(files)} PNG or TIFF section(s) there; an alignment needs at least two",
            reason="INVALID_IMAGE",
        )
    excluded = chosen_sections(exclude, [file.name for file in files])
    mask_files = _masks(masks, files) if masks is not None else ()
    bad: list[BadSection] = []
    shapes: dict[tuple[tuple[int, ...], str], list[Path]] = {}
    for z, file in enumerate(files):
        if z in excluded:
            bad.append(BadSection(z, file.name, "excluded"))
            continue
        try:
            section = images.read_section(file)
        except InvalidArgumentError as error:
            if not skip_bad:
                raise InvalidArgumentError(
                    f"{error.message}; repair or remove it, or give --skip-bad to leave this "
                    "section blank",
                    reason=error.reason,
                    metadata=error.metadata,
                ) from error
            bad.append(BadSection(z, file.name, error.message))
        else:
            shapes.setdefault((section.shape, section.dtype.name), []).append(file)
        if on_progress is not None:
            on_progress(z + 1, len(files))
    if len(shapes) != 1:
        raise InvalidArgumentError(_differing(folder, shapes), reason="INVALID_IMAGE")
    (shape, dtype), good = next(iter(shapes.items()))
    _check_edges(str(folder), shape)
    if len(good) < 2:
        raise InvalidArgumentError(
            f"{folder}: only {len(good)} readable section(s); an alignment needs at least two",
            reason="INVALID_IMAGE",
        )
    return Source(
        label=str(folder),
        shape=(len(files), shape[0], shape[1]),
        dtype=dtype,
        files=tuple(files),
        bad=tuple(bad),
        masks=_checked_masks(mask_files, shape),
    )


def read_order(order: Path, files: Sequence[Path]) -> list[Path]:
    """The files in the order of their names (with or without suffix) in `order`, one a line.

    Raises:
        InvalidArgumentError: a name that is not there or twice; files that are not named are too.
    """
    try:
        lines = order.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{order}: cannot be read: {error}", field="order") from error
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    known = {file.stem: file for file in files} | {file.name: file for file in files}
    found: dict[Path, None] = {}
    for name in names:
        if name not in known:
            raise InvalidArgumentError(
                f"{order}: {name}: no such section in the folder", field="order"
            )
        if known[name] in found:
            raise InvalidArgumentError(f"{order}: {name} is listed twice", field="order")
        found[known[name]] = None
    lost = [file.name for file in files if file not in found]
    if lost:
        raise InvalidArgumentError(
            f"{order}: {len(lost)} section(s) of the folder are not listed, such as {lost[0]}; "
            "list them, and leave out with --exclude what is not to be used",
            field="order",
        )
    return list(found)


def chosen_sections(chosen: Sequence[str], names: Sequence[str]) -> set[int]:
    """Sections named by number or by file name.

    Raises:
        InvalidArgumentError: there is no such section.
    """
    found = set()
    stems = [name.rpartition(".")[0] or name for name in names]
    for one in chosen:
        if one in names or one in stems:
            found.add(names.index(one) if one in names else stems.index(one))
        elif one.isascii() and one.isdecimal() and int(one) < len(names):
            found.add(int(one))
        else:
            raise InvalidArgumentError(
                f"{one}: no such section; give a number from 0 to {len(names) - 1} or a file's "
                "name",
                field="exclude",
            )
    return found


def read_points(file: Path) -> tuple[tuple[float, ...], ...]:
    """Pairs of points, a line each: `z,y,x,z,y,x`, px; lines that start with # are comments.

    Raises:
        InvalidArgumentError: a line that is anything else; names it.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{file}: cannot be read: {error}", field="points") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            values = tuple(float(word) for word in line.split(","))
        except ValueError:
            values = ()
        if len(values) != 6 or not all(map(math.isfinite, values)):
            raise InvalidArgumentError(
                f"{file}: line {number}: write z,y,x,z,y,x in px, not {line.strip()!r}",
                field="points",
            )
        found.append(values)
    if not found:
        raise InvalidArgumentError(f"{file}: holds no pair of points", field="points")
    return tuple(found)


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


def _masks(folder: Path, files: Sequence[Path]) -> tuple[Path | None, ...]:
    if not folder.is_dir():
        raise InvalidArgumentError(f"{folder}: no such folder of masks", field="mask")
    known = {file.stem: file for file in images.list_sections(folder)}
    strange = set(known) - {file.stem for file in files}
    if strange or not known:
        which = f"{min(strange)} is of no section" if strange else "there is none"
        raise InvalidArgumentError(
            f"{folder}: masks are named as their sections; {which}", field="mask"
        )
    return tuple(known.get(file.stem) for file in files)


def _checked_masks(
    masks: tuple[Path | None, ...], shape: tuple[int, ...]
) -> tuple[Path | None, ...]:
    for file in masks:
        if file is not None and (found := images.read_section(file).shape) != shape:
            raise InvalidArgumentError(
                f"{file}: is {found[0]} x {found[1]} px, its section {shape[0]} x {shape[1]}",
                field="mask",
            )
    return masks


def _differing(folder: Path, shapes: dict[tuple[tuple[int, ...], str], list[Path]]) -> str:
    """One line that names a section of each odd kind."""
    if not shapes:
        return f"{folder}: no section can be read"
    ranked = sorted(shapes.items(), key=lambda item: -len(item[1]))
    kinds = "; ".join(
        f"{len(files)} of {shape[0]} x {shape[1]} {dtype} (such as {files[0].name})"
        for (shape, dtype), files in ranked[:3]
    )
    return f"{folder}: sections differ in size or dtype: {kinds}; give one stack of equal sections"


def inspect_array(client: Client, address: str, exclude: Sequence[str] = ()) -> Source:
    """Look at a source array in the storage gateway.

    Raises:
        InvalidArgumentError: not a (z, y, x) array of an integer dtype with two sections or more.
    """
    array = client.open_array(address)
    if len(array.shape) != 3 or array.shape[0] < 2 or array.dtype not in (np.uint8, np.uint16):
        raise InvalidArgumentError(
            f"{address}: has shape {array.shape} and dtype {array.dtype}; an alignment needs "
            "(z, y, x) of uint8 or uint16 with two sections or more",
            reason="SHAPE_MISMATCH",
        )
    z, y, x = array.shape
    _check_edges(address, (y, x))
    _, tenant, _, dataset, _, version, _, name = array.name.split("/", 7)
    pinned = f"{tenant}/{dataset}@{version}/{name}"
    excluded = chosen_sections(exclude, [str(number) for number in range(z)])
    bad = tuple(BadSection(number, "", "excluded") for number in sorted(excluded))
    return Source(label=pinned, shape=(z, y, x), dtype=array.dtype.name, array=pinned, bad=bad)


def _check_edges(label: str, shape: tuple[int, ...]) -> None:
    if min(shape) < SMALLEST_PX:
        raise InvalidArgumentError(
            f"{label}: sections of {shape[0]} x {shape[1]} px are too small to align; they need at "
            f"least {SMALLEST_PX} px each way",
            reason="SHAPE_MISMATCH",
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
    if options.from_fields:
        experiments["fields"] = stage("take_fields", [before], {})
        experiments["render"] = stage("render", ["fields"], each)
    else:
        experiments["features"] = stage("features", [before], each)
        parts = {
            "z": {"range": [0, sections - 1]},
            "block": {"range": [0, len(blocks(source.shape))]},
        }
        experiments["match"] = stage("match", ["features"], parts)
        experiments["relax"] = stage("relax", ["match"], {})
        experiments["render"] = stage("render", ["relax"], each)
    placed = "render"
    if options.method == "deep":
        experiments["refine"] = stage("refine", ["render"], each)
        placed = "refine"
    experiments["measure"] = stage("measure", [placed], each)
    experiments["report"] = stage("report", ["measure"], {})
    document = {"version": 1, "name": name, "experiments": experiments}
    return yaml.safe_dump(document, sort_keys=False)


def blocks(shape: tuple[int, int, int]) -> list[tuple[int, int, int, int]]:
    """(y0, x0, y1, x1) of the parts of a section that are matched one by one, ends excluded.

    One for sections that fit; memory is then bounded by a block, whatever the section.
    """
    spans = []
    for edge in shape[1:]:
        count = max(1, round(edge / BLOCK_PX)) if edge > 1.5 * BLOCK_PX else 1
        ends = np.linspace(0, edge, count + 1).round().astype(int).tolist()
        spans.append(list(itertools.pairwise(ends)))
    return [(y0, x0, y1, x1) for y0, y1 in spans[0] for x0, x1 in spans[1]]


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
    if options.from_fields:
        fields = client.open_array(options.from_fields).name  # with its version
        _, tenant, _, dataset, _, version, _, name = fields.split("/", 7)
        options = replace(options, from_fields=f"{tenant}/{dataset}@{version}/{name}")
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
        text = recipe(session.name, source, options, name=f"align-{address.dataset}"[:64])
        workflow = client.submit(text)
    except BaseException:
        session.abort()
        raise
    say(f"submitted {workflow.name}: {source.shape[0]} sections, to {destination}")
    return AlignJob(workflow, session.name, source, destination)


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
        WorkFailedError: the workflow failed or was cancelled; its session has been aborted.
    """
    status = job.workflow.wait(on_update=on_update)
    if status.state != "SUCCEEDED":
        abandon(client, job.session)
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
