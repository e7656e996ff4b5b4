"""What `hyper align` does and shows: check, upload, follow the stages, fetch report and result."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer

from hyper import align, align_source
from hyper.cli import job, output
from hyper.client import Client
from hyper.config import CLUSTER_FILE, hyper_home
from hyper.errors import InvalidArgumentError, WorkFailedError
from hyper.usage import UsageSampler


def run(
    source: str,
    destination: str,
    options: align.AlignOptions,
    *,
    report: Path | None,
    result_file: Path | None,
    as_json: bool,
    order: Path | None = None,
    masks: Path | None = None,
    resume: bool = False,
) -> None:
    """Align `source` into `destination` and say at every step what happens."""
    align.check_destination(destination)
    if not source.strip():
        raise InvalidArgumentError("SRC is empty: name a folder of sections, or tenant/name/array")
    job.check_writable(report, result_file)
    with ExitStack() as stack:
        client = stack.enter_context(job.client_for(destination))
        sampler = UsageSampler(_cluster_processes())
        if resume:
            label = str(Path(source).expanduser()) if _is_folder(source) else source
            names = _section_names(source, order)
            stack.enter_context(sampler)
            started = align.resume(client, label, destination, options, names=names, say=output.say)
        else:
            checked = _inspect(client, source, options, order, masks)
            for bad in checked.bad:
                output.say(f"warning: section {bad.z} ({bad.file}) is left blank: {bad.reason}")
            stack.enter_context(sampler)
            started = align.submit(client, checked, destination, options, say=output.say)
        result = job.follow(
            started.workflow,
            lambda update: align.finish(client, started, on_update=update),
            hint="what is done is kept for a day: the same command with --resume goes on with it",
        )
    result["seconds"] = round(float(result["seconds"]), 3)
    if sampler.peak_rss_bytes:
        result["cpu_seconds"] = round(sampler.cpu_seconds, 3)
        result["peak_rss_mb"] = round(sampler.peak_rss_mb, 1)
    with job.client_for(destination) as client:
        dataset = client.open_dataset(destination)
        if report is not None:
            report.write_bytes(dataset.read(align.REPORT_FILE))
            result["report"] = str(report)
    if result_file is not None:
        result_file.write_text(json.dumps(result, indent=1) + "\n")
    output.emit(result, _summary(result), as_json=as_json)
    if result["failed_pairs"]:
        for pair in result["failed_pairs"]:
            sections = f"sections {pair['source_z']} and {pair['target_z']}"
            output.say(f"error: {sections} could not be matched: {pair['why']}")
        raise typer.Exit(WorkFailedError.exit_code)


def _is_folder(source: str) -> bool:
    """A folder if there is one of that name, or the text cannot be an array's address."""
    looks_like_path = source.startswith(("/", ".", "~")) or source.count("/") != 2
    return looks_like_path or Path(source).expanduser().exists()


def _section_names(source: str, order: Path | None) -> list[str] | None:
    """Of a folder that is still there, in z order."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return None
    return [file.name for file in align_source.sections_of(folder, order)]


def _inspect(
    client: Client,
    source: str,
    options: align.AlignOptions,
    order: Path | None,
    masks: Path | None,
) -> align_source.Source:
    folder = Path(source).expanduser()
    if not _is_folder(source):
        output.say(f"looking at {source}")
        if order is not None or masks is not None:
            raise InvalidArgumentError("--order and --mask go with a folder of sections, no array")
        return align_source.inspect_array(client, source, options.exclude)
    output.say(f"checking the sections in {folder}")
    client.cluster()  # no cluster: say so before any long work
    with output.progress() as progress:
        bar = progress.add_task("checking", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        checked = align_source.inspect_folder(
            folder, skip_bad=options.skip_bad, exclude=options.exclude, order=order, masks=masks,
            on_progress=advance,
        )  # fmt: skip
    sections, height, width = checked.shape
    output.say(f"{sections} sections of {height} x {width}, {checked.dtype}")
    return checked


def _cluster_processes() -> list[int]:
    """Process ids of the local cluster; none where the cluster is elsewhere."""
    path = hyper_home() / CLUSTER_FILE
    if os.environ.get("HYPER_ENDPOINT") or not path.exists():
        return []
    facts = json.loads(path.read_text())
    return [int(process["pid"]) for process in facts.get("processes", [])]


def _summary(result: dict[str, Any]) -> str:
    """The result in a few lines."""
    flagged = ", ".join(str(section) for section in result["flagged_sections"]) or "none"
    rejected = sum(result["rejected"].values())
    lines = [
        f"aligned {result['array']}  ({result['array_url']})",
        f"correlation of neighbours (CPC94): {_known(result['cpc94_before'], '.3f')} before, "
        f"{_known(result['cpc94'], '.3f')} after",
        f"residual z+1: {_known(result['residual_z1_p50'], '.2f', ' px')} median, "
        f"{_known(result['residual_z1_p95'], '.2f', ' px')} p95; over 10 px: "
        f"{_known(result['residual_over_10px'], '.2%')}",
        f"matches: {result['matches']:,} accepted, {rejected:,} rejected; tissue kept "
        f"{result['tissue_kept']:.1%}; flagged sections: {flagged}",
        f"{result['seconds']:.1f} s",
    ]
    lines += [f"section {z}: {why}" for z, why in result["flags"].items()]
    if result.get("peak_rss_mb"):
        memory = output.human_bytes(result["peak_rss_mb"] * 1e6)
        lines.append(f"{result['cpu_seconds']:.0f} CPU s, {memory} of memory, whole cluster")
    if result.get("report"):
        lines.append(f"report: {result['report']}")
    return "\n".join(lines)


def _known(value: float | None, form: str, unit: str = "") -> str:
    """A number, or a dash where the sections were too small, or too bare, to measure it."""
    return "-" if value is None else f"{value:{form}}{unit}"
