"""FEABAS, its functions called in the order of its own programs, with the settings tuned for this.

Runs in a folder with `configs/general_configs.yaml`, which FEABAS reads when it is imported.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from leave import leave, volume

FEATURES = {
    "affine_only": True,
    "scale": 1.0,
    "detect_settings": {"sigma": 3.5, "min_spacing": 10, "num_features": 5000},
    "extract_settings": {"proj_num": 6, "beam_num": 8, "beam_wd": 3, "beam_radius": 15},
    "matching_settings": {"exhaustive": True},
    "strain_filter_settings": {
        "strain_limit": 0.2, "shear_limit": 45, "sample_ratio": 0.05, "inlier_thresh": 0.5,
    },
    "ransac_filter_settings": {"maxiter": 10000, "dis_tol": 4},
}  # fmt: skip
BLOCKS = {
    "sigma": 2.5, "scale": 1.0, "conf_thresh": 0.35, "pad": True, "spacings": [150, 50],
    "shrink_factor": 1, "distributor": "intersect_triangulation", "residue_mode": "huber",
    "residue_len": 3, "min_boundary_distance": 20,
}  # fmt: skip
MATCHER = {
    "num_workers": 1, "batch_size": 100, "conf_thresh": 0.35, "sigma": 2.5,
    "geodesic_mask": False, "pad": True, "distributor": "cartesian_region",
    "spacings": [200, 50], "shrink_factor": 1, "residue_mode": "huber", "residue_len": 3,
    "min_boundary_distance": 20, "stiffness_multiplier_threshold": 0.1,
    "render_weight_threshold": 0.1,
}  # fmt: skip
MESH_PX, DISTANCE, RESOLUTION = 60, 2, 4.0


def main() -> None:
    """Thumbnails, meshes, matches, relaxation."""
    import feabas.constant as const
    from feabas import dal
    from feabas.aligner import Stack, match_section_from_initial_matches
    from feabas.mesh import Mesh
    from feabas.thumbnail import align_two_thumbnails

    sections: Any = volume()
    depth, height, width = sections.shape
    folder = Path(sys.argv[2]).parent / "feabas"
    folders = {name: folder / name for name in ("coarse", "mesh", "matches", "placed")}
    for path in folders.values():
        path.mkdir(parents=True)
    names = [f"s{z:04d}" for z in range(depth)]
    for z, name in enumerate(names):
        mesh = Mesh.from_bbox(
            (0, 0, width, height), cartesian=False, mesh_size=MESH_PX, min_mesh_angle=20,
            resolution=RESOLUTION, uid=float(z), name=name,
        )  # fmt: skip
        mesh.save_to_h5(str(folders["mesh"] / f"{name}.h5"), override_dict={"name": name})
    loaders = [dal.StreamLoader(s, resolution=RESOLUTION, fillval=0) for s in sections]
    for a in range(depth):
        for b in range(a + 1, min(depth, a + DISTANCE + 1)):
            match = f"{names[a]}__to__{names[b]}.h5"
            coarse = str(folders["coarse"] / match)
            align_two_thumbnails(
                sections[a], sections[b], coarse, resolution=RESOLUTION,
                feature_matching={**FEATURES, "resolution": RESOLUTION},
                block_matching={**BLOCKS, "resolution": RESOLUTION},
            )  # fmt: skip
            if not Path(coarse).exists():
                print(f"no coarse match of {a} and {b}", file=sys.stderr)
                continue
            match_section_from_initial_matches(
                coarse, str(folders["mesh"]), [loaders[a], loaders[b]], str(folders["matches"]),
                {"working_mip_level": 0, "matcher_config": MATCHER},
            )  # fmt: skip
    stack = Stack(
        section_list=names, mesh_dir=str(folders["mesh"]), match_dir=str(folders["matches"]),
        mesh_out_dir=str(folders["placed"]), mip_level=0,
    )  # fmt: skip
    stack.optimize_slide_window(
        optimize_rigid=True, optimize_elastic=True, target_gear=const.MESH_GEAR_MOVING,
        start_loc="M", window_size=64, buffer_size=16, residue_mode="huber", residue_len=3,
        elastic_params={"tol": 1e-7, "atol": 1e-3, "stiffness_lambda": 0.3},
    )  # fmt: skip
    left = []
    for name in names:
        mesh = Mesh.from_h5(str(folders["placed"] / f"{name}.h5"))
        source = mesh.vertices_w_offset(gear=const.MESH_GEAR_INITIAL)[:, ::-1]
        placed = mesh.vertices_w_offset(gear=const.MESH_GEAR_MOVING)[:, ::-1]
        left.append((np.array(source), np.array(placed), np.array(mesh.triangles)))
    leave(left)


if __name__ == "__main__":
    main()
