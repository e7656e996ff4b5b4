"""Quality and cost of aligning sections, beside peers: `python -m benchmarks.matcher.alignment`.

Everyone gets the same sections and leaves triangles; all are rendered by one bilinear pass of one
renderer on one canvas rule and scored by the same functions. `--warp` warps our aligned sections
and sets what comes out against the truth; `--damage` leaves one section out, folds, swaps and turns
some.

With `--json` the last line is {"ours": result object, "feabas": ..., "flow": ..., "ecc": ...}; what
could not run is null, and `why` says why.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.matcher import damage
from benchmarks.matcher.sections import read_stack
from hyper_matcher.align.metrics import chunked_correlation, mean_gradient
from hyper_matcher.align.pipeline import align_stack, pairs_of
from hyper_matcher.align.quality import Facts, measure_pair, result_object
from hyper_matcher.align.render import Canvas, kept_share, render_triangles

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv-bench"
PEERS = ROOT / "benchmarks" / "matcher" / "peers"
PINS = ("feabas==3.0.6", "opencv-python-headless==4.*")
PROGRAMS = {"feabas": "feabas_stack.py", "flow": "flow.py", "ecc": "ecc_chain.py"}
TILE_SHIFTS = ((0, 0), (0, 47), (47, 0), (47, 47))
FEABAS_CONFIG = """\
working_directory: .
cpu_budget: 2
full_resolution: 4.0
section_thickness: 30.0
logfile_level: WARNING
console_level: WARNING
archive_level: WARNING
parallel_framework: process
"""
Triangles = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def install() -> str:
    """Make .venv-bench with the peers; returns why it could not be made, or an empty text."""
    python = VENV / "bin" / "python"
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True, timeout=300)
        probe = [str(python), "-c", "import cv2, feabas.mesh"]
        with tempfile.TemporaryDirectory() as folder:
            _configure(Path(folder))
            found = subprocess.run(probe, cwd=folder, capture_output=True, timeout=120, check=False)
        if found.returncode:
            pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", *PINS]
            done = subprocess.run(pip, capture_output=True, text=True, timeout=900, check=False)
            if done.returncode:
                return (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return ""


def _configure(folder: Path) -> None:
    (folder / "configs").mkdir()
    (folder / "configs" / "general_configs.yaml").write_text(FEABAS_CONFIG)


def run_peer(name: str, volume: NDArray[Any], timeout_s: float) -> tuple[Any, list[Triangles]]:
    """What a peer used and the triangles it left, or why it left none and an empty list."""
    with tempfile.TemporaryDirectory(prefix="hyper-bench-") as text:
        folder = Path(text)
        _configure(folder)
        np.save(folder / "volume.npy", volume)
        command = [
            str(VENV / "bin" / "python"), str(PEERS / PROGRAMS[name]), "volume.npy",
            str(folder / "out.npz"),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(PEERS)}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True,
                timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"was not done after {timeout_s:.0f} s", []
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            said = (done.stderr or done.stdout).strip().splitlines()
            return said[-1] if said else f"ended with status {done.returncode}", []
        with np.load(folder / "out.npz", allow_pickle=False) as left:
            sections = [
                (left[f"source_{z}"], left[f"placed_{z}"], left[f"triangles_{z}"])
                for z in range(len(volume))
            ]
        return json.loads(lines[-1]), sections


def score(
    volume: NDArray[Any], placed: Sequence[Triangles], used: dict[str, Any], known: dict[str, Any]
) -> tuple[dict[str, Any], NDArray[Any]]:
    """The result object of placed triangles, and the rendered sections.

    Args:
        volume: (Z, H, W).
        placed: of each section.
        used: seconds, cpu_seconds, peak_rss_mb.
        known: matches, rejected and flagged sections, where the aligner tells.
    """
    depth, height, width = volume.shape
    canvas = _canvas([p for _, p, _ in placed], (height, width))
    rendered = [
        render_triangles(section, *triangles, canvas)
        for section, triangles in zip(volume, placed, strict=True)
    ]
    sections = np.stack([section for section, _ in rendered])
    valid = np.stack([mask for _, mask in rendered])
    before = [
        measure_pair(volume[z], volume[z + 1], z, z + 1, residuals=False) for z in range(depth - 1)
    ]
    after = [measure_pair(sections[a], sections[b], a, b) for a, b in pairs_of(depth, 2)]
    ratio = [_areas(p, t) / _areas(s, t) for s, p, t in placed]
    areas = np.concatenate([r * np.sign(np.median(r)) for r in ratio])
    tissue = [z for z in range(depth) if volume[z].any()]
    kept = [valid[z].sum() / max(1.0, np.abs(_areas(*placed[z][1:])).sum()) for z in tissue]
    gradients = [mean_gradient(sections[z], valid[z]) / mean_gradient(volume[z]) for z in tissue]
    facts = Facts(
        tissue_kept=float(np.mean(np.minimum(kept, 1.0))),
        sharpness=float(np.mean(gradients)),
        jacobian_min=float(areas.min()),
        jacobian_max=float(areas.max()),
        matches=known.get("matches", 0),
        rejected=known.get("rejected", {}),
        flagged=dict.fromkeys(known.get("flagged_sections", ()), ""),
        **used,
    )
    result = result_object(before, after, facts)
    shifted = [
        chunked_correlation(sections[z][y:, x:], sections[z + 1][y:, x:])
        for z in range(depth - 1)
        for y, x in TILE_SHIFTS
    ]
    result["cpc94_shifted"] = round(float(np.mean([s.mean() for s in shifted if len(s)])), 4)
    neighbours = [p for p in after if p.target_z == p.source_z + 1 and p.tried]
    result["residual_coverage"] = round(min((p.coverage for p in neighbours), default=0.0), 4)
    result["residual_found"] = round(
        sum(len(p.residuals) for p in neighbours) / max(1, sum(p.tried for p in neighbours)), 4
    )
    return result, sections


def _canvas(placed: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> Canvas:
    """The sections' own frame where all keep 97% of themselves in it, else all of them."""
    frame = Canvas((0, 0), shape)
    if all(kept_share(points, frame) >= 0.97 for points in placed):
        return frame
    every = np.concatenate(list(placed))
    low, high = np.floor(every.min(axis=0)).astype(int), np.ceil(every.max(axis=0)).astype(int)
    size = np.minimum(high - low + 1, 3 * np.array(shape))
    return Canvas((int(low[0]), int(low[1])), (int(size[0]), int(size[1])))


def _areas(points: NDArray[np.float64], triangles: NDArray[np.int64]) -> NDArray[np.float64]:
    a, b, c = (points[triangles[:, k]] for k in range(3))
    u, v = b - a, c - a
    return np.asarray(0.5 * (u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]))


def run_ours(volume: NDArray[Any]) -> tuple[dict[str, Any], list[Triangles]]:
    """Our aligner in a process of its own, as the peers: what it used and the triangles."""
    with tempfile.TemporaryDirectory(prefix="hyper-bench-") as text:
        folder = Path(text)
        np.save(folder / "volume.npy", volume)
        command = [sys.executable, "-m", "benchmarks.matcher.ours", str(folder / "volume.npy"),
                   str(folder / "out.npz")]  # fmt: skip
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False
        )
        if done.returncode:
            raise SystemExit(f"error: our own aligner failed:\n{done.stderr}")
        with np.load(folder / "out.npz", allow_pickle=False) as left:
            sections = [
                (left[f"source_{z}"], left[f"placed_{z}"], left[f"triangles_{z}"])
                for z in range(len(volume))
            ]
        return json.loads(done.stdout.strip().splitlines()[-1]), sections


def main(argv: list[str] | None = None) -> int:
    """Align a folder with everyone and print what came out."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    data = Path(os.environ.get("HYPER_DATA_DIR", "../shared/data"))
    parser.add_argument(
        "--sections", default=str(data / "em" / "aligntk_raw"), help="DIR[:a-b], both ends included"
    )
    parser.add_argument("--peers", default="feabas,flow,ecc", help="comma-separated; none: ours")
    parser.add_argument("--warp", action="store_true", help="known smooth warps first")
    parser.add_argument("--damage", action="store_true", help="missing, folded, swapped, turned")
    parser.add_argument("--seed", type=int, default=0, help="of warps and damage")
    parser.add_argument("--peer-timeout", type=float, default=600.0, help="seconds")
    parser.add_argument("--quick", action="store_true", help="four sections, no peers")
    parser.add_argument("--json", action="store_true", help="end with the objects")
    arguments = parser.parse_args(argv)
    volume = read_stack(arguments.sections)
    if arguments.quick:
        volume = volume[:4]
    wheres, done = None, {}
    if arguments.warp:
        laid = align_stack(volume, measure=False)  # so that the sections have one truth
        volume, wheres = damage.warp(np.where(laid.valid, laid.sections, 1), arguments.seed)
    if arguments.damage:
        volume, done = damage.damage(volume, arguments.seed)
    align_stack(volume[:2, :512, :512], measure=False)  # compile once, for the process below too
    found, left = run_ours(volume)
    used = {key: found.pop(key) for key in ("seconds", "cpu_seconds", "peak_rss_mb")}
    report: dict[str, Any] = {"ours": score(volume, left, used, found)[0], "why": {}}
    report["ours"]["flags"] = found["flags"]
    if wheres is not None:
        report["ours"] |= damage.truth_errors(left, wheres)
    peers = [] if arguments.quick or arguments.peers == "none" else arguments.peers.split(",")
    problem = install() if peers else ""
    for name in peers:
        said, placed = (problem, []) if problem else run_peer(name, volume, arguments.peer_timeout)
        if not placed:
            report[name], report["why"][name] = None, said
            continue
        report[name] = score(volume, placed, said, {})[0]
        if wheres is not None:
            report[name] |= damage.truth_errors(placed, wheres)
    if done:
        report["damage"] = done
    if arguments.json:
        print(json.dumps(report))
    else:
        _print(report)
    return 0


def _print(report: dict[str, Any]) -> None:
    names = [name for name, value in report.items() if isinstance(value, dict) and "cpc94" in value]
    keys = [key for key in report["ours"] if not isinstance(report["ours"][key], str | dict | list)]
    print(f"{'':20}" + "".join(f"{name:>12}" for name in names))
    for key in keys:
        print(f"{key:20}" + "".join(f"{report[name].get(key, '')!s:>12}" for name in names))
    print(f"flagged: {report['ours']['flags']}")
    for name, why in report["why"].items():
        print(f"{name} could not run: {why}")
    for key, value in report.get("damage", {}).items():
        print(f"{key}: {value}")


if __name__ == "__main__":
    sys.exit(main())
