"""Files of tile positions: what other programs write, and what is wrong with some of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hyper import stitch
from hyper.errors import InvalidArgumentError
from hyper.images import write_png
from hyper.tile_positions import read_layout

OME = """<?xml version="1.0"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">
 <Image ID="Image:0" Name="a"><Pixels SizeX="100" SizeY="80" PhysicalSizeX="0.004"
   PhysicalSizeY="0.004" PhysicalSizeXUnit="µm" PhysicalSizeYUnit="µm">
  <TiffData><UUID FileName="a.png">urn:uuid:1</UUID></TiffData>
  <Plane TheZ="0" TheC="0" TheT="0" PositionX="0" PositionY="0" PositionXUnit="µm"
   PositionYUnit="µm"/></Pixels></Image>
 <Image ID="Image:1" Name="b"><Pixels SizeX="100" SizeY="80" PhysicalSizeX="0.004"
   PhysicalSizeY="0.004">
  <TiffData><UUID FileName="b.png">urn:uuid:2</UUID></TiffData>
  <Plane TheZ="0" TheC="0" TheT="0" PositionX="320" PositionY="8" PositionXUnit="nm"
   PositionYUnit="nm"/></Pixels></Image>
</OME>"""
TRAKEM2 = """<?xml version="1.0" encoding="ISO-8859-1"?>
<!DOCTYPE trakem2_anything [
 <!ELEMENT trakem2 (project)>
]>
<trakem2><t2_layer_set><t2_layer oid="6" thickness="1.0" z="1.0">
 <t2_patch oid="9" file_path="b.png" transform="matrix(1.0,0.0,0.0,1.0,80.0,2.0)" /></t2_layer>
 <t2_layer oid="5" thickness="1.0" z="0.0">
 <t2_patch oid="7" file_path="a.png" transform="matrix(1.0,0.0,0.0,1.0,0.0,0.0)" /></t2_layer>
</t2_layer_set></trakem2>"""


def folder_of_tiles(tmp_path: Path, count: int = 2) -> Path:
    rng = np.random.default_rng(0)
    for name in "abcdef"[:count]:
        write_png(tmp_path / f"{name}.png", rng.integers(1, 255, (80, 100), np.uint8))
    return tmp_path


def places(path: Path) -> list[tuple[str, float, float]]:
    return [(tile.file.name, tile.y, tile.x) for tile in read_layout([path]).tiles]


def test_feabas_text_is_x_then_y(tmp_path: Path) -> None:
    file = tmp_path / "s1.txt"
    file.write_text(
        "{ROOT_DIR}\t.\n{RESOLUTION}\t4.0\n{TILE_SIZE}\t80\t100\na.png\t0\t0\nb.png\t80\t2\n"
    )
    assert places(file) == [("a.png", 0, 0), ("b.png", 2, 80)]
    layout = read_layout([file])
    assert layout.pixel_nm == 4.0 and layout.tiles[1].file.parent == tmp_path
    assert {tile.section for tile in layout.tiles} == {"s1"}


def test_feabas_text_may_have_the_ends_of_tiles_and_spaces_in_names(tmp_path: Path) -> None:
    file = tmp_path / "s1.txt"
    file.write_text("{TILE_SIZE}\t80\t100\na b.png\t80\t2\t180\t82\nc.png\t0\t0\n")
    assert places(file) == [("a b.png", 2, 80), ("c.png", 0, 0)]
    file.write_text("{ROOT_DIR} x y z\na b.png 80 2\n")
    (tile,) = read_layout([file]).tiles
    assert (tile.file, tile.y, tile.x) == (tmp_path / "x y z" / "a b.png", 2, 80)


def test_a_file_a_section_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2):
        (tmp_path / f"s{number}.txt").write_text(f"t{number}.png 5 6\n")
    layout = read_layout([tmp_path / "s10.txt", tmp_path / "s2.txt"], tmp_path)
    assert [tile.section for tile in layout.tiles] == ["s2", "s10"]


def test_trakem2_layers_are_sections(tmp_path: Path) -> None:
    file = tmp_path / "project.xml"
    file.write_text(TRAKEM2)
    layout = read_layout([file])
    assert [(t.file.name, t.section, t.y, t.x) for t in layout.tiles] == [
        ("a.png", "0.0", 0, 0), ("b.png", "1.0", 2, 80),
    ]  # fmt: skip


def test_render_specs(tmp_path: Path) -> None:
    image = tmp_path / "b c.png"
    affine = {
        "className": "mpicbg.trakem2.transform.AffineModel2D", "dataString": "1 0 0 1 7 8",
    }  # fmt: skip
    specs = [
        {
            "tileId": "a", "z": 3.0, "transforms": {"type": "list", "specList": [affine]},
            "mipmapLevels": {"0": {"imageUrl": f"file:{tmp_path / 'a.png'}"}},
        },
        {
            "tileId": "b", "z": 3.0, "minX": 80, "minY": 2,
            "mipmapLevels": {"0": {"imageUrl": image.as_uri()}},
        },
    ]  # fmt: skip
    file = tmp_path / "tiles.json"
    file.write_text(json.dumps(specs))
    assert places(file) == [("a.png", 8, 7), ("b c.png", 2, 80)]


def test_ome_positions_become_pixels(tmp_path: Path) -> None:
    file = tmp_path / "tiles.companion.ome.xml"
    file.write_text(OME)
    (a, ay, ax), (b, by, bx) = places(file)
    assert (a, ay, ax, b) == ("a.png", 0, 0, "b.png")
    assert (by, bx) == pytest.approx((2, 80))
    assert read_layout([file]).pixel_nm == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.png\t0\n", r"line 1: needs a file, x and y"),
        ("a.png\t0\tzero\n", r"line 1: 'zero' is no number"),
        ("a.png\t0\tnan\n", r"line 1: nan is no position"),
        ("a.png\t0\t0\na.png\t3\t3\n", r"a\.png is listed twice"),
        ("\n", "lists no tile"),
        ("[{}]", "no mipmapLevels"),
        ("[{", "is not JSON"),
        ("<trakem2>", "is not XML"),
        ("<trakem2></trakem2>", "no t2_patch"),
        (TRAKEM2.replace("(1.0,0.0,0.0,1.0,80.0", "(0.0,1.0,-1.0,0.0,80.0"), "turns or scales"),
        (OME.replace('PositionX="320"', ""), "image b: has no Plane with PositionX"),
        (OME.replace('PositionXUnit="nm"', 'PositionXUnit="furlong"'), "furlong"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "positions"
    file.write_text(text)
    with pytest.raises(InvalidArgumentError, match=words):
        read_layout([file])


def inspect(folder: Path, lines: str, **options: object) -> stitch.Mosaic:
    file = folder / "positions.txt"
    file.write_text(lines)
    asked = stitch.StitchOptions(**options)  # type: ignore[arg-type]  # by name
    return stitch.inspect(read_layout([file], folder), "here", asked)


def test_tiles_that_can_be_stitched(tmp_path: Path) -> None:
    mosaic = inspect(folder_of_tiles(tmp_path, 3), "a.png\t0\t0\nb.png\t80\t2\nc.png\t3\t60\n")
    assert mosaic.seams == ((0, 1), (0, 2), (1, 2))
    assert mosaic.shape == (80, 100) and mosaic.dtype == "uint8" and mosaic.left_out == ()


def test_a_tile_that_is_listed_but_missing(tmp_path: Path) -> None:
    lines = "a.png\t0\t0\nb.png\t80\t2\ngone.png\t3\t60\n"
    folder = folder_of_tiles(tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"gone\.png: listed.*not there.*--skip-missing"):
        inspect(folder, lines)
    mosaic = inspect(folder, lines, skip_missing=True)
    assert len(mosaic.tiles) == 2 and "gone.png" in mosaic.left_out[0]


def test_a_tile_that_has_no_position(tmp_path: Path) -> None:
    folder = folder_of_tiles(tmp_path, 3)
    lines = "a.png\t0\t0\nb.png\t80\t2\n"
    with pytest.raises(InvalidArgumentError, match=r"1 image.*no position, such as c\.png"):
        inspect(folder, lines)
    assert inspect(folder, lines, skip_missing=True).left_out == ("c.png: has no position",)


def test_tiles_without_overlap(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"1 tile.*no other, such as c\.png at y 90, x 0"
    ):
        inspect(folder_of_tiles(tmp_path, 3), "a.png\t0\t0\nb.png\t80\t2\nc.png\t0\t90\n")


def test_tiles_of_two_sizes_and_a_damaged_one(tmp_path: Path) -> None:
    folder = folder_of_tiles(tmp_path)
    write_png(folder / "b.png", np.ones((80, 90), np.uint16))
    with pytest.raises(InvalidArgumentError, match=r"1 of 80 x 100 uint8.*1 of 80 x 90 uint16"):
        inspect(folder, "a.png\t0\t0\nb.png\t80\t2\n")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:100])
    with pytest.raises(InvalidArgumentError, match=r"b\.png.*damaged"):
        inspect(folder, "a.png\t0\t0\nb.png\t80\t2\n")
