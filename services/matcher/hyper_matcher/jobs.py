"""The stages of `hyper align` as task functions: each reads, calls pure functions, and writes.

Every function may run twice, on any worker: what it writes depends on its inputs alone and goes to
its own shard or file of the job's session. The recipe is written by `hyper.align.recipe`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper import compute_matching
from hyper.align import blocks
from hyper.context import TaskContext
from hyper.errors import InvalidArgumentError
from hyper.installed import install_command
from hyper_matcher import job_pairs, job_tiles
from hyper_matcher.align.blocks import Means, Span, grown, render_window, within_block
from hyper_matcher.align.facts import PairFacts
from hyper_matcher.align.fading import MARGIN_PX, compose, faded, keep, touches
from hyper_matcher.align.geometry import NOTHING_TO_MATCH, Affine, Mesh, point_pairs
from hyper_matcher.align.levels import options_at
from hyper_matcher.align.metrics import mean_gradient
from hyper_matcher.align.order import swapped_sections
from hyper_matcher.align.pipeline import pairs_of
from hyper_matcher.align.quality import measure_windows
from hyper_matcher.align.relax import relax as relax_stack
from hyper_matcher.align.render import (
    Canvas,
    choose_canvas,
    inverse_map,
    jacobians,
    placed_px,
)
from hyper_matcher.align.springs import RelaxOptions
from hyper_matcher.bandpass import bandpass_onnx
from hyper_matcher.before_commit import before_commit
from hyper_matcher.job_files import (
    ALIGNED,
    ELASTIC,
    FEATURES,
    MODEL_FILE,
    RAW,
    VALID,
    Job,
    RenderedPart,
    measure_file,
    placed_file,
    section_file,
    shards,
)
from hyper_matcher.job_plan import choose_plan

_FEATURE_GAIN = 127.0  # tanh's -1..1 becomes 1..255; 128 is no feature
_FEATURE_ZERO = 128.0
_MIN_KEPT = 0.97
PLACED = 16  # sections that a task puts together
_MESHES = 6  # finer than the coarsest: more than any stack needs


def prepare(context: TaskContext, *, session: str) -> dict[str, Any]:
    """Look at some sections, choose the parameters, make the arrays and the band-pass net."""
    job = Job.open(context, session)
    if job.settings["options"]["method"] == "deep":
        _deep()  # refused now, not after all else has been done
    plan = choose_plan(job.settings, [job.sample_section(z) for z in job.sample()])
    job.write_plan(plan)
    depth, height, width = job.shape
    if job.settings["files"]:
        job.make_array(RAW, job.shape, job.settings["dtype"])
    job.make_array(FEATURES, (depth, height, width), "uint8")
    model = bandpass_onnx(
        plan.sigma_low_px, plan.sigma_high_px, offset=plan.grey_mean, gain=plan.gain
    )
    job.session.write(MODEL_FILE, model)
    for line in plan.reasons:
        context.log(line)
    return {"template_px": plan.template_px, "spacing_px": plan.spacing_px}


def ingest(context: TaskContext, *, session: str, z: int) -> dict[str, Any]:
    """Decode one section into array `raw`; a section that was left out stays blank."""
    job = Job.open(context, session)
    if job.left_out(z):
        return {"blank": True}
    section = job.source_section(z)
    job.session[RAW][z] = section
    return {"mean": round(float(section.mean()), 2)}


def features(
    context: TaskContext, *, session: str, z: int, part: int | None = None
) -> dict[str, Any]:
    """Filter one section, or a part of it, with the band-pass net, on the inference service."""
    job = Job.open(context, session)
    if job.left_out(z):
        return {"blank": True}
    source = job.source_array()
    _, height, width = job.shape
    y0, x0, y1, x1 = (0, 0, height, width) if part is None else job.parts(job.shape[1:])[part]
    context.client.infer_volume(
        f"{session}/files/{MODEL_FILE}",
        source,
        job.session[FEATURES],
        box=((z, y0, x0), (z + 1, y1, x1)),
        output_scale=_FEATURE_GAIN,
        output_shift=_FEATURE_ZERO,
    )
    if job.in_blocks:
        job_pairs.write_overview(job, z, part or 0)
    return {}


def coarse(context: TaskContext, *, session: str, z: int) -> dict[str, Any]:
    """Fit section z, shrunk, to the next ones: where its blocks are to be looked for."""
    for a, b, share in job_pairs.guess(Job.open(context, session), z):
        context.log(f"{a} - {b}: {share:.0%} of the blocks of their overviews agree")
    return {}


def match(context: TaskContext, *, session: str, z: int, block: int = 0) -> dict[str, Any]:
    """Match a block of section z with the next sections, on the matcher service."""
    job = Job.open(context, session)
    plan = job.plan
    _, height, width = job.shape
    core = blocks(job.shape)[block]
    pairs = [pair for pair in pairs_of(job.shape[0], plan.neighbours) if pair[0] == z]
    guesses = job_pairs.load_guesses(job, z)
    # without a guess the block itself has to show where it lies
    room_px = round((1.25 if len(guesses) == len(pairs) else 2.0) * plan.template_px)
    window = grown(core, room_px + plan.search_px + 64, (height, width))
    corner = np.array(window[:2], np.float64)
    accepted = 0
    for found in context.client.match_sections(
        job.session[FEATURES],
        pairs,
        spacing_px=plan.spacing_px,
        template_px=plan.template_px,
        search_px=plan.search_px,
        window=window,
        guesses=[_from_corner(guesses.get(b), corner) for _, b in pairs],
    ):
        kept = within_block(found, window, core)
        accepted += int((kept.rejection == 0).sum())
        if kept.flag:
            context.log(f"{kept.source_z} - {kept.target_z}: {kept.flag}")
        job_pairs.write_matches(job, kept, block)
    return {"accepted": accepted}


def _from_corner(
    guess: Affine | None, corner: NDArray[np.float64]
) -> compute_matching.Affine | None:
    """A map between sections as one between places relative to a corner."""
    if guess is None:
        return None
    return compute_matching.Affine(guess.matrix, guess(corner[None])[0] - corner)


def gather(context: TaskContext, *, session: str, z: int) -> dict[str, Any]:
    """Put together what the blocks of section z leave for those who look at the whole stack."""
    return {"pairs": job_pairs.gather(Job.open(context, session), z)}


def relax(context: TaskContext, *, session: str) -> dict[str, Any]:
    """Bring all meshes to rest at once, or a coarser mesh of each; decide the canvas.

    Returns, for what follows, the tiles of each finer mesh, the parts of the stack to `place`, and
    those of the canvas.
    """
    job = Job.open(context, session)
    depth, height, width = job.shape
    plan, facts = job.plan, job_pairs.load_facts(job)
    options = RelaxOptions(spacing_px=plan.mesh_spacing_px)
    points = point_pairs(job.settings["options"]["points"])
    levels = job.levels
    if len(levels) == 1:
        pairs = job_pairs.load_matches(job)
        relaxed = relax_stack((height, width), depth, pairs, options, points, facts)
    else:
        coarse = options_at(levels[0], options)
        pairs = job_pairs.load_thin_matches(job)
        relaxed = relax_stack((height, width), depth, pairs, coarse, points, facts)
    flagged = swapped_sections(depth, facts) | relaxed.flagged
    for bad in job.settings["bad"]:
        flagged[int(bad["z"])] = f"left blank: {bad['reason']}"
    if len(flagged) == depth:
        raise InvalidArgumentError(
            f"nothing can be aligned: {why_nothing(relaxed.flagged, facts)}",
            reason="INVALID_IMAGE",
        )
    canvas = choose_canvas(relaxed.positions, relaxed.mesh, _MIN_KEPT, tuple(flagged))
    job.write_flagged(flagged)
    made = _make_outputs(job, Mesh.over((height, width), levels[-1]), canvas)
    if len(levels) == 1:
        job.write_fields(0, relaxed.positions - relaxed.mesh.vertices)
    else:
        job.write_coarse(relaxed, facts)
        context.log(f"the mesh is relaxed tile by tile at {levels[1:]} px, from {levels[0]:.3g} px")
    for z, why in sorted(flagged.items()):
        context.log(f"section {z} is flagged: {why}")
    counts = [len(job.tiling(k, relaxed.rigid)) for k in range(1, len(levels))]
    counts += [0] * (_MESHES - len(counts))
    tiles = {f"level-{k}": {"range": [0, count]} for k, count in enumerate(counts, 1)}
    placed = {"range": [0, -(-depth // PLACED) if len(levels) > 1 else 0]}
    return {"flagged": len(flagged), "parts": placed} | tiles | made


def settle(
    context: TaskContext, *, session: str, level: int, turn: int, tile: int
) -> dict[str, Any]:
    """Relax one tile of a finer mesh, from where the coarser one, or the last turn, has left it."""
    job = Job.open(context, session)
    return {"vertices": job_tiles.settle(job, level, turn, tile)}


def place(context: TaskContext, *, session: str, part: int) -> dict[str, Any]:
    """Put together the tiles of some sections: their displacement fields."""
    job = Job.open(context, session)
    sections = range(part * PLACED, min((part + 1) * PLACED, job.shape[0]))
    job.write_fields(sections.start, job_tiles.fields(job, sections))
    job.write_json(placed_file(part), {"sections": [sections.start, sections.stop]})
    return {"sections": len(sections)}


def _make_outputs(job: Job, mesh: Mesh, canvas: Canvas) -> dict[str, Any]:
    """Make the arrays that are written; returns the parts of the canvas, for what follows."""
    shape = (job.shape[0], *canvas.shape)
    job.make_array(ALIGNED, shape, job.settings["dtype"])
    job.make_array(VALID, shape, "uint8")
    tiles: dict[str, Any] = {}
    if job.settings["options"]["method"] == "deep":
        job.make_array(ELASTIC, shape, job.settings["dtype"])
        tiles = {"refine-tiles": {"range": [0, len(job.refine_tiles())]}}
    job.make_fields(mesh, canvas)
    shards = enumerate(job.make_levels(shape), 1)
    return tiles | {
        "canvas": list(canvas.shape),
        "canvas-parts": {"range": [0, len(job.parts(canvas.shape))]},
        **{f"shards-{level}": {"range": [0, count]} for level, count in shards},
    }


def take_fields(context: TaskContext, *, session: str) -> dict[str, Any]:
    """Use the displacement fields of another alignment in place of matches."""
    job = Job.open(context, session)
    depth, *shape = job.shape
    source = job.settings["options"]["from_fields"]
    fields = context.client.open_array(source)
    known = fields.attributes
    if fields.ndim != 4 or fields.shape[:2] != (2, depth) or known.get("section_shape_px") != shape:
        raise InvalidArgumentError(
            f"{source}: has shape {tuple(fields.shape)} and is of sections of "
            f"{known.get('section_shape_px')} px; needed are fields that `hyper align` wrote for "
            f"{depth} sections of {shape} px",
            reason="SHAPE_MISMATCH",
        )
    mesh = Mesh((shape[0], shape[1]), int(fields.shape[2]), int(fields.shape[3]))
    y, x, height, width = (int(value) for value in known["canvas_px"])
    canvas = Canvas((y, x), (height, width))
    job.write_flagged(
        {int(bad["z"]): f"left blank: {bad['reason']}" for bad in job.settings["bad"]}
    )
    return _make_outputs(job, mesh, canvas)


def why_nothing(flagged: Mapping[int, str], pairs: Sequence[PairFacts]) -> str:
    """One line on a stack none of whose sections can be trusted."""
    rejected: Counter[str] = Counter()
    for pair in pairs:
        rejected.update(pair.rejected)
    for nothing in NOTHING_TO_MATCH:
        del rejected[nothing.name.lower()]
    if not rejected:
        return f"none of the {len(flagged)} sections has any contrast"
    reason, number = rejected.most_common(1)[0]
    section, why = min(flagged.items())
    return (
        f"no two of the {len(flagged)} sections match (section {section}: {why}; most matches "
        f"failed for {reason.replace('_', ' ')}: {number} of {rejected.total()}); are they "
        "neighbours, in order, and of tissue?"
    )


def render(
    context: TaskContext, *, session: str, z: int, part: int | None = None
) -> dict[str, Any]:
    """Render one section, or its part on a part of the canvas, into array `aligned`; or into what
    the refinement starts from."""
    job = Job.open(context, session)
    if job.tiled and not job.session.exists(placed_file(z // PLACED)):
        raise InvalidArgumentError(
            f"section {z} has not been placed: the recipe lacks stages `settle` and `place`, which "
            "a stack of this size needs; see hyper.align.recipe"
        )
    if not part:
        job.take_fields(z)
    placed = mesh, _, canvas = job.load_placed(z)
    if job.settings["options"]["method"] != "deep":
        return _store(job, z, placed, part, lambda window: _maps(placed, window))
    for y0, x0, y1, x1 in _pieces(job, canvas, part):
        maps = _maps(placed, (y0, x0, y1, x1))
        job.session[ELASTIC][z, y0:y1, x0:x1] = _drawn(job, z, mesh, maps)[0]
    return {}


def refine(context: TaskContext, *, session: str, z: int, tile: int) -> dict[str, Any]:
    """Find out how far a tile of a section, as rendered, lies off its neighbours."""
    deep = _deep()
    job = Job.open(context, session)
    elastic, core = job.session[ELASTIC], job.refine_tiles()[tile]
    shape = (int(elastic.shape[1]), int(elastic.shape[2]))
    window = y0, x0, y1, x1 = grown(core, MARGIN_PX, shape)
    beside = [d for d in (-2, -1, 1, 2) if 0 <= z + d < job.shape[0]]
    others = [(abs(d), np.asarray(elastic[z + d, y0:y1, x0:x1])) for d in beside]
    section = np.asarray(elastic[z, y0:y1, x0:x1])
    field = deep.refine_section(section, others, maps=_maps(job.load_placed(z), window))
    job.write_field(z, tile, keep(core, window, field, shape))
    length = np.linalg.norm(field, axis=-1)
    return {"refined_px_p99": round(float(np.percentile(length, 99)), 2)}


def redraw(
    context: TaskContext, *, session: str, z: int, part: int | None = None
) -> dict[str, Any]:
    """Render one section, or its part on a part of the canvas, with what the refinement found."""
    job = Job.open(context, session)
    placed = _, _, canvas = job.load_placed(z)
    cores = job.refine_tiles()
    read = lru_cache(maxsize=9)(lambda number: job.load_field(z, number, cores[number]))

    def maps(window: Span) -> NDArray[np.float32]:
        near = [number for number, core in enumerate(cores) if touches(core, window)]
        field = faded(map(read, near), window, canvas.shape)
        reach = grown(window, int(np.ceil(np.abs(field).max())) + 1, canvas.shape)
        y, x = window[0] - reach[0], window[1] - reach[1]
        wide = np.zeros((reach[2] - reach[0], reach[3] - reach[1], 2), np.float32)
        inner = np.s_[y : y + field.shape[0], x : x + field.shape[1]]
        wide[inner] = field
        return np.asarray(compose(_maps(placed, reach), wide)[inner])

    return _store(job, z, placed, part, maps)


def _deep() -> ModuleType:
    try:
        from hyper_matcher.align import deep
    except ImportError as error:
        raise InvalidArgumentError(
            f"--method deep needs torch: this worker has none; there, {install_command('torch')}"
        ) from error
    return deep


def _store(
    job: Job,
    z: int,
    placed: tuple[Mesh, NDArray[np.float64], Canvas],
    part: int | None,
    maps: Callable[[Span], NDArray[np.float32]],
) -> dict[str, Any]:
    """Render a section shard by shard, and keep where it is valid, and its facts.

    Args:
        job: the alignment.
        z: section.
        placed: its mesh, where the vertices lie, and the canvas.
        part: of the canvas; None: all of it.
        maps: the inverse map (h, w, 2) of a window of the canvas.
    """
    mesh, positions, canvas = placed
    before, after, valid_px, shown = Means(), Means(), 0, False
    for y0, x0, y1, x1 in _pieces(job, canvas, part):
        section, valid = _drawn(job, z, mesh, maps((y0, x0, y1, x1)))
        job.session[ALIGNED][z, y0:y1, x0:x1] = section
        job.session[VALID][z, y0:y1, x0:x1] = valid.astype(np.uint8)
        after.add(mean_gradient(section, valid), int(valid.sum()))
        valid_px += int(valid.sum())
    count = 1 if part is None else len(job.parts(canvas.shape))
    for y0, x0, y1, x1 in blocks((1, *mesh.shape))[part or 0 :: count]:
        source = job.source_window(z, slice(y0, y1), slice(x0, x1))
        before.add(mean_gradient(source), source.size)
        shown = shown or bool(source.any())
    areas = jacobians(positions, mesh)
    facts = RenderedPart(
        blank=not shown, valid_px=valid_px, placed_px=placed_px(positions, mesh),
        gradient_before=(before.total, before.weight), gradient_after=(after.total, after.weight),
        jacobian_min=float(areas.min()), jacobian_max=float(areas.max()),
    )  # fmt: skip
    job.write_json(section_file(z, part or 0), asdict(facts))
    return {"valid_px": valid_px}


def _pieces(job: Job, canvas: Canvas, part: int | None) -> list[Span]:
    """The shards of the canvas, or of a part of it."""
    pieces = shards(canvas.shape)
    if part is None:
        return pieces
    top, left, bottom, right = job.parts(canvas.shape)[part]
    return [s for s in pieces if top <= s[0] < bottom and left <= s[1] < right]


def _maps(placed: tuple[Mesh, NDArray[np.float64], Canvas], window: Span) -> NDArray[np.float32]:
    """The inverse map (h, w, 2) of a window of the canvas."""
    mesh, positions, canvas = placed
    y0, x0, y1, x1 = window
    origin = (canvas.origin[0] + y0, canvas.origin[1] + x0)
    return inverse_map(positions, mesh, Canvas(origin, (y1 - y0, x1 - x0)))


def _drawn(
    job: Job, z: int, mesh: Mesh, maps: NDArray[np.float32]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A window of a section, and where it is valid."""
    return render_window(
        maps, mesh.shape, job.settings["dtype"], lambda y, x: job.source_window(z, y, x)
    )


def coarsen(context: TaskContext, *, session: str, level: int, shard: int) -> dict[str, Any]:
    """Write one shard of a level of the pyramid."""
    Job.open(context, session).coarsen(level, shard)
    return {}


def measure(
    context: TaskContext, *, session: str, z: int, part: int | None = None
) -> dict[str, Any]:
    """Score section z, or a part of it, with its next two, before and after."""
    job = Job.open(context, session)
    depth = job.shape[0]
    aligned = job.session[ALIGNED]
    before, after = [], []
    count = 1 if part is None else len(job.parts(aligned.shape[1:]))
    share = (part or 0, count)
    for a, b in pairs_of(depth, 2):
        if a != z:
            continue
        quality = measure_windows(
            aligned.shape[1:], lambda d, y, x: np.asarray(aligned[d, y, x]), a, b, share=share
        )
        after.append(quality.to_json())
        if b == a + 1:
            quality = measure_windows(
                job.shape[1:], job.source_window, a, b, residuals=False, share=share
            )
            before.append(quality.to_json())
    job.write_json(measure_file(z, part or 0), {"before": before, "after": after})
    return {"pairs": len(after)}


def report(context: TaskContext, *, session: str) -> dict[str, Any]:
    """Gather everything, write the result object and the report, commit the session."""
    from hyper_matcher.job_report import write_report

    job = Job.open(context, session)
    found: dict[str, Any] = {}
    with before_commit(context):
        found["cpc94"] = write_report(context, job)["cpc94"]
        if not job.settings["options"]["keep_intermediates"]:
            job.drop_intermediates()
        job.finish_levels()
    return {"version": job.commit(context.task)} | found
