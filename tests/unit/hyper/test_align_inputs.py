"""What `hyper align` checks before any work starts."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hyper import align, align_source
from hyper.errors import InvalidArgumentError
from hyper.images import write_png


def section(seed: int, height: int = 100, width: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 255, (height, width), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for z in range(4):
        write_png(tmp_path / f"z{z}.png", section(z))
    return tmp_path


def test_a_good_folder(folder: Path) -> None:
    (folder / "notes.txt").write_text("not a section")
    source = align_source.inspect_folder(folder)
    assert source.shape == (4, 100, 120) and source.dtype == "uint8" and source.bad == ()
    assert [file.name for file in source.files] == ["z0.png", "z1.png", "z2.png", "z3.png"]


def test_one_section_is_not_a_stack(tmp_path: Path) -> None:
    write_png(tmp_path / "only.png", section(0))
    with pytest.raises(InvalidArgumentError, match="at least two"):
        align_source.inspect_folder(tmp_path)


def test_a_truncated_section_is_named_and_skipped_only_when_asked(folder: Path) -> None:
    victim = folder / "z2.png"
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(InvalidArgumentError, match=r"z2\.png.*--skip-bad"):
        align_source.inspect_folder(folder)
    source = align_source.inspect_folder(folder, skip_bad=True)
    assert [(bad.z, bad.file) for bad in source.bad] == [(2, "z2.png")]
    assert source.shape[0] == 4, "the section keeps its place"


def test_sections_of_two_sizes_are_named(folder: Path) -> None:
    write_png(folder / "z9.png", section(9, width=130))
    with pytest.raises(InvalidArgumentError, match=r"4 of 100 x 120.*1 of 100 x 130.*z9\.png"):
        align_source.inspect_folder(folder)


def test_what_is_no_file_is_a_bad_section_too(folder: Path) -> None:
    (folder / "z4.png").symlink_to(folder / "unmounted.png")
    os.mkfifo(folder / "z5.png")
    (folder / "thumbnails.png").mkdir()
    with pytest.raises(InvalidArgumentError, match=r"z4\.png: is a link that leads nowhere"):
        align_source.inspect_folder(folder)
    source = align_source.inspect_folder(folder, skip_bad=True)
    assert [(bad.z, bad.file) for bad in source.bad] == [(4, "z4.png"), (5, "z5.png")]
    assert "not a regular file" in source.bad[1].reason


def test_sections_too_small_to_align(tmp_path: Path) -> None:
    for z in range(2):
        write_png(tmp_path / f"z{z}.png", section(z, height=64))
    with pytest.raises(InvalidArgumentError, match=r"64 x 120 px are too small.*at least 96"):
        align_source.inspect_folder(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"template_px": 160}, "160 px are too large.*at most 50"),
        ({"search_px": 60}, "at most 37"),
        ({"spacing_px": 51.0}, "at most 50"),
    ],
)
def test_lengths_that_do_not_fit(folder: Path, options: dict[str, Any], words: str) -> None:
    source = align_source.inspect_folder(folder)
    align.check_lengths(source, align.AlignOptions(template_px=50, search_px=25))
    with pytest.raises(InvalidArgumentError, match=words):
        align.check_lengths(source, align.AlignOptions(**options))


@pytest.mark.parametrize(
    "bad", [{"neighbours": 0}, {"template_px": -1}, {"voxel_size_nm": (40.0, 0.0, 4.0)}]
)
def test_options_out_of_range(bad: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError):
        align.AlignOptions(**bad)  # type: ignore[arg-type]  # wrong on purpose


def test_the_recipe_has_a_task_a_section(folder: Path) -> None:
    source = align_source.inspect_folder(folder)
    text = align.recipe("tenants/t/datasets/d/sessions/s", source, align.AlignOptions(), name="a")
    experiments = yaml.safe_load(text)["experiments"]
    assert list(experiments) == [
        "prepare", "ingest", "features", "match", "relax", "render", "measure", "report",
    ]  # fmt: skip
    assert experiments["render"]["parameters"]["z"] == {"range": [0, 4]}
    assert experiments["match"]["depends_on"] == ["features"]


def test_an_array_needs_no_ingest() -> None:
    source = align_source.Source(
        label="t/d@1/raw", shape=(3, 8, 8), dtype="uint8", array="t/d@1/raw"
    )
    text = align.recipe("tenants/t/datasets/d/sessions/s", source, align.AlignOptions(), name="a")
    experiments = yaml.safe_load(text)["experiments"]
    assert "ingest" not in experiments and experiments["features"]["depends_on"] == ["prepare"]


@pytest.mark.parametrize(
    "chosen",
    [
        {"spacing_px": 0.001}, {"spacing_px": math.nan}, {"spacing_px": 1e9}, {"template_px": 3},
        {"template_px": 100_000}, {"search_px": 1_000_000}, {"search_px": -1}, {"neighbours": 9},
        {"voxel_size_nm": (math.nan, 1.0, 1.0)}, {"voxel_size_nm": (1.0, math.inf, 1.0)},
        {"voxel_size_nm": (40.0, 4.0, 0.0)},
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused_at_once(chosen: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(chosen)).split("_")[0]):
        align.AlignOptions(**chosen)


@pytest.mark.parametrize("name", ["lab/x@2", "lab/x/raw", "lab", "lab/..", ""])
def test_the_destination_is_a_dataset(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        align.check_destination(name)


def test_an_order_of_ones_own(folder: Path, tmp_path: Path) -> None:
    order = tmp_path / "order.txt"
    order.write_text("# as cut\nz2\nz0.png\n\nz1\nz3\n")
    source = align_source.inspect_folder(folder, order=order)
    assert [file.name for file in source.files] == ["z2.png", "z0.png", "z1.png", "z3.png"]
    for text, words in (
        ("z2\nz0\nz1\n", "1 section.* not listed, such as z3"),
        ("z0\nz0\nz1\nz2\nz3\n", "z0 is listed twice"),
        ("z0\nz1\nz2\nz3\nz4\n", "z4: no such section"),
    ):
        order.write_text(text)
        with pytest.raises(InvalidArgumentError, match=words):
            align_source.inspect_folder(folder, order=order)


def test_excluded_sections_are_not_even_read(folder: Path) -> None:
    (folder / "z1.png").write_bytes(b"")
    source = align_source.inspect_folder(folder, exclude=("z1", "3"))
    assert [(bad.z, bad.reason) for bad in source.bad] == [(1, "excluded"), (3, "excluded")]
    with pytest.raises(InvalidArgumentError, match="z9: no such section"):
        align_source.inspect_folder(folder, exclude=("z9",))
    with pytest.raises(InvalidArgumentError, match="at least two"):
        align_source.inspect_folder(folder, exclude=("0", "1", "2"))


def test_masks_are_named_as_their_sections(folder: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    with pytest.raises(InvalidArgumentError, match="there is none"):
        align_source.inspect_folder(folder, masks=masks)
    write_png(masks / "z1.png", section(0))
    source = align_source.inspect_folder(folder, masks=masks)
    assert [mask and mask.name for mask in source.masks] == [None, "z1.png", None, None]
    write_png(masks / "z2.png", section(0, width=99))
    with pytest.raises(
        InvalidArgumentError, match=r"z2\.png: is 100 x 99 px, its section 100 x 120"
    ):
        align_source.inspect_folder(folder, masks=masks)
    (masks / "z2.png").rename(masks / "other.png")
    with pytest.raises(InvalidArgumentError, match="other is of no section"):
        align_source.inspect_folder(folder, masks=masks)


def test_points_are_pairs_in_two_sections(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    file.write_text("# z,y,x,z,y,x\n0,5,6,1,7.5,8\n")
    options = align.AlignOptions(points=align_source.read_points(file))
    assert options.points == ((0, 5, 6, 1, 7.5, 8),)
    source = align_source.inspect_folder(folder)
    align.check_points(source, options)
    for bad in ((0, 5, 6, 0, 7, 8), (0, 5, 6, 4, 7, 8), (0, 500, 6, 1, 7, 8), (0.5, 5, 6, 1, 7, 8)):
        with pytest.raises(InvalidArgumentError, match="not in two of 4 sections"):
            align.check_points(source, align.AlignOptions(points=(bad,)))
    for text in ("0,5,6,1,7\n", "0,5,6,1,7,x\n", "0,5,6,1,7,nan\n"):
        file.write_text(text)
        with pytest.raises(InvalidArgumentError, match="line 1: write z,y,x"):
            align_source.read_points(file)
