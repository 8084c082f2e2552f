"""Where atoms may lie: intervals of parabolas against every grid point and periodic image, one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pymatgen.core import Lattice

from policies.representations import distances
from policies.representations.distances import MIN_DISTANCE, MIN_HEIGHT, free_on_line, nearest, pair_limits, too_close
from policies.representations.quantiser import Q

IMAGES = np.array(list(itertools.product(range(-4, 5), repeat=3)))


def cells(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Lattice rows, skew ones among them, whose planes are at least `MIN_HEIGHT` apart."""
    found = []
    while len(found) < count:
        angles = rng.uniform(45, 135, 3)
        if not abs(angles[0] - angles[1]) + 2 < angles[2] < min(angles[0] + angles[1], 360 - angles[0] - angles[1]) - 2:
            continue
        rows = Lattice.from_parameters(*rng.uniform(1.5, 4, 3), *angles).matrix
        if (1 / np.linalg.norm(np.linalg.inv(rows), axis=0)).min() >= MIN_HEIGHT:
            found.append(rows)
    return found


def brute_force(rows: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """(...) Å of fractional differences (..., 3): the shortest over all images."""
    wrapped = differences - np.round(differences)
    return np.linalg.norm((wrapped[..., None, :] + IMAGES) @ rows, axis=-1).min(-1)


@pytest.mark.parametrize("seed", range(4))
def test_lines_are_free_where_no_image_is_near(seed):
    rng = np.random.default_rng(seed)
    rows = cells(6, rng)
    metric = np.array([r @ r.T for r in rows], np.float32)
    start = (rng.integers(-Q, Q, (6, 5, 3)) / Q).astype(np.float32)
    direction = rng.integers(-2, 3, (6, 5, 3)).astype(np.float32)
    direction[:, 0] = [0.0, 0.0, 1.0]
    real = rng.random((6, 5)) < 0.8
    free = free_on_line(metric, start, direction, real)
    u = np.arange(Q)[:, None] / Q
    some_taken = False
    for b in range(6):
        distance = np.full(Q, np.inf)
        for m in range(5):
            if real[b, m]:
                distance = np.minimum(distance, brute_force(rows[b], start[b, m] + u * direction[b, m]))
        clear = np.abs(distance - MIN_DISTANCE) > 1e-4  # float32 may decide at the limit itself
        assert (free[b] == (distance >= MIN_DISTANCE))[clear].all()
        some_taken |= (~free[b]).any()
    assert some_taken


@pytest.mark.parametrize("seed", range(2))
def test_lines_with_a_limit_for_each_pair(seed):
    rng = np.random.default_rng(seed)
    rows = cells(4, rng)
    metric = np.array([r @ r.T for r in rows], np.float32)
    start = (rng.integers(-Q, Q, (4, 3, 3)) / Q).astype(np.float32)
    direction = rng.integers(-1, 2, (4, 3, 3)).astype(np.float32)
    limit = rng.uniform(0.5, MIN_HEIGHT, (4, 3)).astype(np.float32)
    free = free_on_line(metric, start, direction, np.ones((4, 3), bool), limit=limit)
    u = np.arange(Q)[:, None] / Q
    assert 0 < free.mean() < 1
    for b in range(4):
        spare = np.full(Q, np.inf)
        for m in range(3):
            apart = brute_force(rows[b], start[b, m] + u * direction[b, m])
            spare = np.minimum(spare, apart - float(limit[b, m]))
        clear = np.abs(spare) > 1e-4
        assert (free[b] == (spare >= 0))[clear].all()


def test_nearest_images():
    rng = np.random.default_rng(2)
    rows = cells(20, rng)
    metric = np.array([r @ r.T for r in rows], np.float32)
    differences = rng.uniform(-2, 2, size=(20, 30, 3))
    found = nearest(metric, differences.astype(np.float32))
    expected = np.array([brute_force(r, d) for r, d in zip(rows, differences, strict=True)])
    assert np.abs(found - expected).max() < 1e-3
    lattice = IMAGES[np.abs(IMAGES).sum(1) > 0]
    assert distances.shortest(metric) == pytest.approx(
        [np.linalg.norm(lattice @ r, axis=1).min() for r in rows], abs=1e-3)


def test_limits_of_pairs_by_hand():
    # Covalent radii (Cordero et al.): H 0.31, O 0.66, Cs 2.44 Å.
    radius = distances.radii()
    assert pair_limits(radius[8], radius[55]).item() == pytest.approx(0.6 * 3.10)
    assert pair_limits(radius[1], radius[1]).item() == 0.5


def test_what_a_line_leaves_free_is_not_too_close():
    """At just the limit, as 210/1008 of 2.40 Å, rounding must not decide one way here and the other there."""
    lengths = np.arange(240, 600, dtype=np.float32) / 100
    metric = np.eye(3, dtype=np.float32) * np.stack([np.full_like(lengths, 9.0), lengths, lengths], 1)[:, None] ** 2
    u = np.arange(Q, dtype=np.float32)[:, None] / Q
    for start in ([0.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.5, 504 / Q - 1, 1.0]):
        begin, along = np.array(start, np.float32), np.array([0.0, 1.0, 0.0], np.float32)
        free = free_on_line(metric, *(np.tile(x, (360, 1, 1)) for x in (begin, along)), np.ones((360, 1), bool))
        near = too_close(metric, np.tile(begin + along * u, (360, 1, 1)))
        assert not (free & near).any()


def test_points_too_close():
    rng = np.random.default_rng(1)
    rows = cells(20, rng)
    metric = np.array([r @ r.T for r in rows], np.float32)
    differences = rng.normal(scale=0.2, size=(20, 50, 3)) + rng.integers(-2, 3, (20, 50, 3))
    found = too_close(metric, differences.astype(np.float32))
    expected = np.array([brute_force(r, d) for r, d in zip(rows, differences, strict=True)]) < MIN_DISTANCE
    assert (found == expected).mean() > 0.999 and 0 < expected.mean() < 1


def test_by_hand():
    # A cube of 5.04 Å: 0.5 Å is exactly 100 steps. An atom at 1/4 of the edge forbids 252 - 99 .. 252 + 99 along it.
    metric = np.eye(3, dtype=np.float32)[None] * 5.04**2
    start, real = np.array([[[-0.25, 0.0, 0.0]]], np.float32), np.array([[True]])
    along, still = np.array([[[1.0, 0.0, 0.0]]], np.float32), np.zeros((1, 1, 3), np.float32)
    free = free_on_line(metric, start, along, real)[0]
    assert np.flatnonzero(~free).tolist() == list(range(153, 352))
    # Half an ångström beside the line nothing is forbidden, and a difference that stays forbids all or nothing.
    beside = np.array([[[-0.25, 0.1, 0.0]]], np.float32)
    assert free_on_line(metric, beside, along, real).all()
    assert not free_on_line(metric, start * np.float32(0.2), still, real).any()
    assert free_on_line(metric, start, still, real).all()


def test_nothing_to_keep_from_leaves_all_free():
    nothing = np.zeros((1, 0, 3), np.float32)
    assert free_on_line(np.eye(3, dtype=np.float32)[None], nothing, nothing, np.zeros((1, 0), bool)).all()
