"""Builds wyckoff.json, the 1731 Wyckoff positions: `python -m policies.representations.build_wyckoff`.

moyo knows every position but only tells of those that atoms of a crystal occupy. So crystals are made up for each space
group, with two orbits of generic points (they fix the group) and a few orbits of random special points, until every
letter from a to the general position's, which is always the last, has been seen. It takes two to six minutes.
"""

from __future__ import annotations

import json
from pathlib import Path

import moyopy
import numpy as np

from policies.representations.wyckoff import LETTERS, N_GROUPS, N_POSITIONS, TABLE

SYMPREC = 1e-4  # Å
VOLUME = 20.0  # Å^3 an atom
SPECIAL = 4  # special orbits a crystal
TRIES = 2000

Row = tuple[str, int, str, str]


def build(seed: int = 0) -> dict[int, list[Row]]:
    """{group: rows of (letter, multiplicity, coordinates, site symmetry)}, letters in order; the seed changes nothing
    but the time taken. Raises RuntimeError where letters are missing after TRIES crystals."""
    table = {group: _group_rows(group, np.random.default_rng([seed, group])) for group in range(1, N_GROUPS + 1)}
    count = sum(len(rows) for rows in table.values())
    if count != N_POSITIONS:
        raise RuntimeError(f"{count} Wyckoff positions, not {N_POSITIONS}")
    return table


def write(table: dict[int, list[Row]], path: Path = TABLE) -> None:
    """Writes the table, one line a group."""
    lines = [f'"{group}":{json.dumps(rows, separators=(",", ":"))}' for group, rows in table.items()]
    path.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


def _group_rows(group: int, rng: np.random.Generator) -> list[Row]:
    operations = moyopy.operations_from_number(group, setting=moyopy.Setting.standard())
    rotations, translations = np.array(operations.rotations), np.array(operations.translations)
    found: dict[str, Row] = {}
    for _ in range(TRIES):
        for row in _seen(group, rotations, translations, rng):
            if found.setdefault(row[0], row) != row:
                raise RuntimeError(f"space group {group}: {row} and {found[row[0]]}")
        letters = LETTERS[: len(found)]
        # The general position is in every crystal and has the last letter, so no gap means none is missing.
        if found and set(found) == set(letters) and found[letters[-1]][1] == len(rotations):
            return [found[letter] for letter in letters]
    raise RuntimeError(f"space group {group}: only found {''.join(sorted(found))}")


def _seen(group: int, rotations: np.ndarray, translations: np.ndarray, rng: np.random.Generator) -> set[Row]:
    """The positions told of by one made-up crystal; empty where it turned out to be of another group."""
    seeds = [rng.random(3), rng.random(3)] + [_special_point(rotations, translations, rng) for _ in range(SPECIAL)]
    orbits = [_orbit(x, rotations, translations) for x in seeds]
    positions = np.concatenate(orbits)
    numbers = np.repeat(np.arange(1, len(orbits) + 1), [len(orbit) for orbit in orbits])
    lattice = _lattice(rotations, VOLUME * len(positions), rng)
    try:
        cell = moyopy.Cell(lattice.tolist(), positions.tolist(), numbers.tolist())
        dataset = moyopy.MoyoDataset(cell, symprec=SYMPREC, setting=moyopy.Setting.standard())
    except ValueError:
        return set()
    if dataset.number != group:
        return set()
    # The normaliser moves a crystal to other, equally good origins: more letters at no cost.
    sequences = [wyckoffs for _, wyckoffs in dataset.normalizer_wyckoff_positions().coset_representatives]
    return {(w.letter, w.multiplicity, w.coordinates, w.site_symmetry) for wyckoffs in sequences for w in wyckoffs}


def _special_point(rotations: np.ndarray, translations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(3,) a random point moved onto what some random operations leave fixed in common."""
    x = rng.random(3)
    A, b = np.zeros((0, 3)), np.zeros(0)
    # Operations that share no fixed point with those before are left out; more trials give more special points.
    for i in rng.integers(len(rotations), size=2 ** rng.integers(1, 8)):
        more_A = np.concatenate([A, rotations[i] - np.eye(3)])
        more_b = np.concatenate([b, translations[i] + rng.integers(-1, 2, size=3)])
        fixed = x - np.linalg.pinv(more_A) @ (more_A @ x + more_b)
        if np.abs(more_A @ fixed + more_b).max() < 1e-9:
            A, b, x = more_A, more_b, fixed
    return x


def _orbit(x: np.ndarray, rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """(m, 3) the distinct images of x in the cell."""
    images = rotations @ x + translations
    difference = images[:, None] - images[None]
    same = (np.abs(difference - np.round(difference)) < 1e-7).all(axis=-1)
    return images[same.argmax(axis=1) == np.arange(len(images))] % 1.0


def _lattice(rotations: np.ndarray, volume: float, rng: np.random.Generator) -> np.ndarray:
    """(3, 3) rows in Å: a random, roughly isotropic lattice that the rotations keep, of the volume (Å^3) given."""
    basis = np.eye(3) + rng.uniform(-0.25, 0.25, size=(3, 3))
    # Averaging any metric over the point group leaves one that has the symmetry.
    metric = np.mean([R.T @ basis @ basis.T @ R for R in rotations], axis=0)
    rows = np.linalg.cholesky(metric)
    return rows * np.cbrt(volume / np.linalg.det(rows))


if __name__ == "__main__":
    write(build())
