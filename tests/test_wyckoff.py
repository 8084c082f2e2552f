"""The table of Wyckoff positions: its own consistency, positions checked by hand, and moyo's and spglib's letters."""

from __future__ import annotations

import subprocess
import sys

import moyopy
import numpy as np
import pytest
import spglib
from pymatgen.core import Lattice

from policies.representations.wyckoff import (
    GRID,
    LETTERS,
    N_GROUPS,
    N_POSITIONS,
    Position,
    centring,
    operations,
    orbit_keys,
    parse,
    positions,
)
from rlgen.spacegroup import from_spacegroup

GROUPS = range(1, N_GROUPS + 1)
U = np.array([0.1234, 0.3711, 0.7183])

CRYSTALS = {
    "rutile": ("P4_2/mnm", Lattice.tetragonal(4.59, 2.96), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]),
    "spinel": ("Fd-3m", Lattice.cubic(8.08), ["Mg", "Al", "O"], [[1 / 8] * 3, [1 / 2] * 3, [0.262] * 3]),
    "perovskite": (
        "Pm-3m",
        Lattice.cubic(3.9),
        ["Sr", "Ti", "O"],
        [[0, 0, 0], [1 / 2] * 3, [1 / 2, 1 / 2, 0]],
    ),
    "wurtzite": ("P6_3mc", Lattice.hexagonal(3.25, 5.2), ["Zn", "O"], [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.382]]),
    "quartz": ("P3_121", Lattice.hexagonal(4.91, 5.4), ["Si", "O"], [[0.469, 0, 1 / 3], [0.414, 0.267, 0.453]]),
    "corundum": ("R-3c", Lattice.hexagonal(4.76, 12.99), ["Al", "O"], [[0, 0, 0.352], [0.306, 0, 1 / 4]]),
    "anatase": ("I4_1/amd", Lattice.tetragonal(3.78, 9.51), ["Ti", "O"], [[0, 3 / 4, 1 / 8], [0, 1 / 4, 0.083]]),
    "olivine": (
        "Pnma",
        Lattice.orthorhombic(10.3, 6.0, 4.7),
        ["Li", "Fe", "P", "O", "O", "O"],
        [[0, 0, 0], [0.28, 0.25, 0.97], [0.09, 0.25, 0.42], [0.1, 0.25, 0.74], [0.46, 0.25, 0.21], [0.17, 0.05, 0.28]],
    ),
    "baddeleyite": (
        "P2_1/c",
        Lattice.monoclinic(5.15, 5.21, 5.32, 99.2),
        ["Zr", "O", "O"],
        [[0.275, 0.04, 0.208], [0.07, 0.332, 0.345], [0.45, 0.757, 0.479]],
    ),
    "garnet": (
        "Ia-3d",
        Lattice.cubic(11.5),
        ["Mg", "Al", "Si", "O"],
        [[1 / 8, 0, 1 / 4], [0, 0, 0], [3 / 8, 0, 1 / 4], [0.033, 0.05, 0.654]],
    ),
}


def _named(group: int, letter: str) -> Position:
    return next(position for position in positions(group) if position.letter == letter)


def _points(position: Position, u: np.ndarray) -> np.ndarray:
    return (position.orbit_matrix @ u[: position.dof] + position.orbit_shift / GRID) % 1.0


def _rounded(points: np.ndarray) -> np.ndarray:
    """The distinct points modulo 1, in 1e-6, sorted."""
    return np.unique(np.rint(points * 1e6).astype(int) % 10**6, axis=0)


def _on(position: Position, x: np.ndarray) -> float:
    """How far (fractional, in the worst component) x is from the nearest point that the position can take."""
    offsets = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T
    rest = (x - position.orbit_shift / GRID)[:, None] + offsets  # (m, 27, 3)
    projectors = np.array([np.eye(3) - M @ np.linalg.pinv(M) for M in position.orbit_matrix.astype(float)])
    return float(np.abs(np.einsum("mij,mkj->mki", projectors, rest)).max(axis=-1).min())


def _cell(name: str) -> tuple[list[list[float]], list[list[float]], list[int]]:
    structure = from_spacegroup(*CRYSTALS[name])
    return structure.lattice.matrix.tolist(), structure.frac_coords.tolist(), [site.specie.Z for site in structure]


def test_counts():
    found = [positions(group) for group in GROUPS]
    assert sum(len(group) for group in found) == N_POSITIONS
    for group in found:
        assert sorted((p.letter for p in group), key=LETTERS.index) == list(LETTERS[: len(group)])
        order = [(p.dof > 0, LETTERS.index(p.letter)) for p in group]
        assert order == sorted(order)


def test_operations_are_groups():
    """Closed under multiplication, with the identity first; a finite closed set of invertible maps is a group."""
    for group in GROUPS:
        rotations, translations = operations(group)
        assert (rotations[0] == np.eye(3)).all() and not translations[0].any()
        codes = _codes(rotations, translations)
        assert len(set(codes.tolist())) == len(codes)
        products = np.einsum("aij,bjk->abik", rotations, rotations)
        shifts = (np.einsum("aij,bj->abi", rotations, translations) + translations[:, None]) % GRID
        assert np.isin(_codes(products, shifts), codes).all()


def _codes(rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """One integer per operation; rotation entries are -1..1 in every setting used here."""
    linear = (rotations + 1).reshape(*rotations.shape[:-2], 9) @ (3 ** np.arange(9))
    return linear * GRID**3 + translations @ (GRID ** np.arange(3))


def test_centring():
    points = {1: 1, 5: 2, 38: 2, 71: 2, 146: 3, 225: 4}
    assert {group: centring(group)[0] for group in points} == points
    for group in GROUPS:
        n, M = centring(group)
        assert round(np.linalg.det(M)) == n
        rotations, translations = operations(group)
        pure = translations[(rotations == np.eye(3)).all(axis=(1, 2))] / GRID
        assert len(pure) == n
        assert np.allclose(pure @ M, np.round(pure @ M))
        # The primitive vectors must be lattice vectors of the conventional cell's centring.
        basis = np.linalg.inv(M) % 1.0
        for row in basis:
            assert np.isclose(np.abs((row - pure) - np.round(row - pure)).max(axis=1).min(), 0.0, atol=1e-9)


def test_multiplicities():
    for group in GROUPS:
        found = positions(group)
        assert max(p.multiplicity for p in found) == len(operations(group)[0])
        assert max(found, key=lambda p: LETTERS.index(p.letter)).multiplicity == len(operations(group)[0])
        for p in found:
            assert p.orbit_matrix.shape == (p.multiplicity, 3, p.dof) and p.orbit_shift.shape == (p.multiplicity, 3)
            assert (p.orbit_matrix[0] == p.matrix).all() and (p.orbit_shift[0] == p.shift).all()
            assert len(_rounded(_points(p, U))) == p.multiplicity


def test_orbits_are_invariant():
    """Every operation maps the points of an orbit onto themselves."""
    for group in GROUPS:
        rotations, translations = operations(group)
        for p in positions(group):
            points = _points(p, U)
            assert (_rounded(rotations @ points[-1] + translations / GRID) == _rounded(points)).all()


def test_free_components():
    for group in GROUPS:
        for p in positions(group):
            for k, component in enumerate(p.free):
                assert abs(p.matrix[component, k]) == 1 and np.count_nonzero(p.matrix[component]) == 1


@pytest.mark.parametrize(
    ("group", "letter", "multiplicity", "coordinates"),
    [
        (225, "a", 4, "0,0,0"),
        (225, "b", 4, "1/2,1/2,1/2"),
        (225, "c", 8, "1/4,1/4,1/4"),
        (225, "e", 24, "x,0,0"),
        (194, "c", 2, "1/3,2/3,1/4"),
        (194, "k", 12, "x,2x,z"),
        (62, "c", 4, "x,1/4,z"),
        (227, "a", 8, "1/8,1/8,1/8"),
        (227, "c", 16, "0,0,0"),
        (47, "A", 8, "x,y,z"),
        (166, "c", 6, "0,0,z"),
        (14, "e", 4, "x,y,z"),
        (1, "a", 1, "x,y,z"),
    ],
)
def test_by_hand(group: int, letter: str, multiplicity: int, coordinates: str):
    p = _named(group, letter)
    matrix, shift = parse(coordinates)
    assert p.multiplicity == multiplicity
    assert (p.matrix == matrix).all() and (p.shift == shift).all()


def test_parse():
    matrix, shift = parse("x,-2x+1/4,z-1/8")
    assert matrix.tolist() == [[1, 0], [-2, 0], [0, 1]] and shift.tolist() == [0, 6, 21]
    for wrong in ("x,y", "x,,z", "x,y,w", "x,y,1/7", "x,y,+"):
        with pytest.raises(ValueError):
            parse(wrong)
    with pytest.raises(ValueError):
        positions(231)


@pytest.mark.parametrize("name", CRYSTALS)
def test_letters_of_moyo(name: str):
    dataset = moyopy.MoyoDataset(moyopy.Cell(*_cell(name)), symprec=1e-3, setting=moyopy.Setting.standard())
    cell = dataset.std_cell
    letters = [w.letter for w in dataset.normalizer_wyckoff_positions().wyckoffs]
    _check_letters(dataset.number, np.array(cell.positions), letters, np.array(cell.numbers))


@pytest.mark.parametrize("name", CRYSTALS)
def test_letters_of_spglib(name: str):
    structure = _cell(name)
    number = moyopy.MoyoDataset(moyopy.Cell(*structure), symprec=1e-3).number
    hall = next(
        h
        for h in range(1, 531)
        if spglib.get_spacegroup_type(h).number == number
        and _same_operations(spglib.get_symmetry_from_database(h), number)
    )
    dataset = spglib.get_symmetry_dataset(structure, symprec=1e-3, hall_number=hall)
    letters = [dataset.wyckoffs[list(dataset.mapping_to_primitive).index(i)] for i in dataset.std_mapping_to_primitive]
    _check_letters(dataset.number, dataset.std_positions, letters, dataset.std_types)


def _same_operations(found: dict[str, np.ndarray], group: int) -> bool:
    """Whether spglib's setting is the table's."""
    translations = np.rint(found["translations"] * GRID).astype(int) % GRID
    return set(_codes(found["rotations"], translations)) == set(_codes(*operations(group)))


def _check_letters(group: int, x: np.ndarray, letters: list[str], numbers: np.ndarray) -> None:
    """Each atom is on the position of its letter and on none that is more special; the counts fit."""
    for xyz, letter in zip(x, letters, strict=True):
        p = _named(group, letter)
        assert _on(p, xyz) < 1e-3
        for other in positions(group):
            if other.multiplicity < p.multiplicity or (other.dof == p.dof == 0 and other is not p):
                assert _on(other, xyz) > 1e-3
    for z in np.unique(numbers):
        here = [letter for letter, number in zip(letters, numbers, strict=True) if number == z]
        for letter in set(here):
            assert here.count(letter) % _named(group, letter).multiplicity == 0


def test_orbit_keys():
    keys = orbit_keys()
    assert len(keys) == N_POSITIONS
    n = len(set(keys.values()))
    assert 800 <= n <= 990
    assert list(dict.fromkeys(keys.values())) == list(range(n))
    # The same points, 0 0 0 alone in a primitive cell, in P-1, Pmmm and Pm-3m; other points elsewhere.
    assert keys[2, "a"] == keys[47, "a"] == keys[221, "a"] != keys[221, "b"]
    # An enantiomorphic pair keeps its handedness.
    assert keys[76, "a"] != keys[78, "a"]
    assert len({keys[group, positions(group)[-1].letter] for group in GROUPS}) == N_GROUPS


def test_equal_keys_mean_equal_points():
    """The operations of either group make the same orbit of a generic point of a position that both have."""
    first: dict[int, Position] = {}
    for (group, letter), key in orbit_keys().items():
        p = _named(group, letter)
        other = first.setdefault(key, p)
        assert (other.multiplicity, other.dof) == (p.multiplicity, p.dof)
        rotations, translations = operations(other.group)
        assert (_rounded(_points(p, U)) == _rounded(rotations @ _points(p, U)[0] + translations / GRID)).all()


def test_import_is_light():
    code = "import sys, policies.representations.wyckoff; assert not {'moyopy', 'torch', 'pymatgen'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
