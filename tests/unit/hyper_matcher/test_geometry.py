from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper_matcher.align.geometry import Affine, Mesh, PairMatches, Rejection, lattice
from hyperapi.matcher.v1.matcher_service_pb2 import Rejection as WireRejection


def test_rejections_are_those_of_the_wire() -> None:
    wire = {name.removeprefix("REJECTION_"): number for name, number in WireRejection.items()}
    assert wire.pop("UNSPECIFIED") == Rejection.ACCEPTED
    assert wire == {reason.name: int(reason) for reason in Rejection if reason}


@given(st.floats(-3, 3), st.integers(0, 1000))
def test_affine_maps_are_fitted_inverted_and_chained(angle: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 500, (20, 2))
    turn = Affine.rigid(angle, np.array([200.0, 100.0]), np.array([5.0, -7.0]))
    assert turn.angle_rad == pytest.approx(angle, abs=1e-9)
    assert Affine.fit_rigid(points, turn(points)).matrix == pytest.approx(turn.matrix, abs=1e-9)
    bent = Affine(turn.matrix @ np.array([[1.1, 0.2], [0.0, 0.9]]), turn.offset)
    fitted = Affine.fit(points, bent(points), rng.uniform(0.1, 1, 20))
    assert fitted(points) == pytest.approx(bent(points), abs=1e-4)
    assert bent.then(bent.inverse())(points) == pytest.approx(points, abs=1e-6)


@given(st.integers(20, 300), st.integers(20, 300), st.floats(7, 90), st.integers(0, 1000))
def test_barycentric_weights_reproduce_points(h: int, w: int, spacing: float, seed: int) -> None:
    mesh = Mesh.over((h, w), spacing)
    points = np.random.default_rng(seed).uniform(0, 1, (30, 2)) * (h - 1, w - 1)
    index, weight = mesh.barycentric(points)
    assert weight.sum(axis=1) == pytest.approx(np.ones(30))
    assert weight.min() > -1e-9
    assert np.einsum("nk,nkd->nd", weight, mesh.vertices[index]) == pytest.approx(points, abs=1e-6)


def test_triangles_cover_the_section_once() -> None:
    mesh = Mesh.over((101, 201), 20)
    assert (mesh.rows, mesh.columns) == (6, 11)
    a, b, c = (mesh.vertices[mesh.triangles[:, k]] for k in range(3))
    u, v = b - a, c - a
    area = np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]) / 2
    assert area.sum() == pytest.approx(100 * 200)
    assert len(mesh.edges) == 6 * 10 + 5 * 11 + 5 * 10


def test_lattice_is_triangular_and_inside() -> None:
    points = lattice((300, 400), 40, 30)
    assert points.min() >= 30
    assert (points <= np.array([269, 369])).all()
    gaps = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(points))
    assert gaps.min(axis=1) == pytest.approx(np.full(len(points), 40.0), rel=1e-6)
    assert len(lattice((10, 10), 40, 30)) == 1


def test_pairs_count_their_rejections() -> None:
    reasons = np.array([0, 3, 3, 10], np.uint8)
    pair = PairMatches(
        0, 1, Affine.identity(), 1.0, np.zeros((4, 2)), np.zeros((4, 2)), np.zeros(4),
        np.zeros(4), reasons, 0.1,
    )  # fmt: skip
    assert pair.counts() == {"low_peak": 2, "consensus": 1}
    assert pair.accepted.tolist() == [True, False, False, False]
