"""How a crystal is laid out as text, and how text is read: never crashes, never clips, always rounds."""

from __future__ import annotations

import re

import numpy as np
from pymatgen.core import Element

from policies.representations.base import EOS, MAX_Z
from policies.representations.distances import MIN_DISTANCE, MIN_HEIGHT, MIN_VOLUME
from policies.representations.lattice import FLAT_MARGIN
from policies.representations.quantiser import MAX_ANGLE, MAX_LENGTH, MIN_ANGLE, MIN_LENGTH
from policies.representations.text_tables import Decimals
from rlgen.types import CrystalError

#: Values exactly between two steps must round the same way whatever the noise of floating point.
_TIE = 1e-4
#: What is written keeps this far (relative) from the grammar's limits, so that rounding never makes it illegal.
_SAFE = 1e-4
_NUMBERS = {z: Element.from_Z(z).symbol for z in range(1, MAX_Z + 1)}
_SYMBOLS = {symbol: z for z, symbol in _NUMBERS.items()}
_TRIPLE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?) ([0-9]{1,3}(?:\.[0-9]{1,6})?) ([0-9]{1,3}(?:\.[0-9]{1,6})?)")


def rounded(values: np.ndarray, decimals: int) -> np.ndarray:
    """Integers in steps of the last decimal."""
    return np.floor(np.asarray(values, dtype=float) * 10**decimals + 0.5 + _TIE).astype(np.int64)


def write(parameters: np.ndarray, numbers: np.ndarray, frac: np.ndarray, decimals: Decimals) -> str:
    """The text of a cell (6,) in Å and degrees and its atoms (N,), (N, 3), without a line end at its end."""
    lengths, angles = rounded(parameters[:3], decimals.lengths), rounded(parameters[3:], decimals.angles)
    _check_range(np.r_[lengths / 10**decimals.lengths, angles / 10**decimals.angles])
    grid = rounded(frac, decimals.coordinates) % 10**decimals.coordinates
    lines = [_line(lengths, decimals.lengths), _line(angles, decimals.angles)]
    for z, xyz in zip(numbers, grid, strict=True):
        lines += [_NUMBERS[int(z)], _line(xyz, decimals.coordinates)]
    return "\n".join(lines)


def _line(values: np.ndarray, decimals: int) -> str:
    if not decimals:
        return " ".join(str(v) for v in values)
    return " ".join(f"{v // 10**decimals}.{v % 10**decimals:0{decimals}d}" for v in values.tolist())


def read(text: str, max_atoms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cell (6,) in Å and degrees, fractional coordinates (N, 3), atomic numbers (N,).

    Raises CrystalError: "parse" for what is not laid out so, "chemistry" for no element, "geometry" for numbers out of
    range and for angles that make no cell.
    """
    lines = text.removesuffix("\n").split("\n")
    if len(lines) < 4 or len(lines) % 2:
        raise CrystalError("parse", f"{len(lines)} lines do not make a lattice and whole atoms")
    if len(lines) // 2 - 1 > max_atoms:
        raise CrystalError("parse", f"{len(lines) // 2 - 1} atoms, at most {max_atoms}")
    parameters = np.array(_triple(lines[0]) + _triple(lines[1]))
    frac = np.array([_triple(line) for line in lines[3::2]])
    unknown = [symbol for symbol in lines[2::2] if symbol not in _SYMBOLS]
    if unknown:
        raise CrystalError("chemistry", f"{unknown[0]!r} is no element")
    _check_range(parameters)
    alpha, beta, gamma = parameters[3:]
    if not abs(alpha - beta) < gamma < min(alpha + beta, 360 - alpha - beta):
        raise CrystalError("geometry", f"no cell has the angles {alpha}, {beta}, {gamma}")
    if frac.max() >= 1:
        raise CrystalError("geometry", f"coordinate {frac.max()} is not below 1")
    return parameters, frac, np.array([_SYMBOLS[symbol] for symbol in lines[2::2]])


def _triple(line: str) -> list[float]:
    found = _TRIPLE.fullmatch(line)
    if found is None:
        raise CrystalError("parse", f"{line[:40]!r} where three numbers belong")
    return [float(number) for number in found.groups()]


def _check_range(parameters: np.ndarray) -> None:
    lengths, angles = parameters[:3], parameters[3:]
    if not ((lengths >= MIN_LENGTH) & (lengths < MAX_LENGTH)).all():
        raise CrystalError("geometry", f"lattice length outside {MIN_LENGTH} to {MAX_LENGTH} Å: {lengths}")
    if not ((angles >= MIN_ANGLE) & (angles <= MAX_ANGLE)).all():
        raise CrystalError("geometry", f"lattice angle outside {MIN_ANGLE} to {MAX_ANGLE} degrees: {angles}")


def check(parameters: np.ndarray, frac: np.ndarray, numbers: np.ndarray) -> None:
    """Raise CrystalError("geometry") for what the grammar does not allow: flat or dense cells, close atoms."""
    alpha, beta, gamma = parameters[3:]
    if gamma < abs(alpha - beta) + FLAT_MARGIN or gamma > min(alpha + beta, 360 - alpha - beta) - FLAT_MARGIN:
        raise CrystalError("geometry", f"the angles {alpha}, {beta}, {gamma} make a flat cell")
    cosines = np.cos(np.radians(parameters[3:]))
    metric = np.outer(parameters[:3], parameters[:3]) * np.array(
        [[1, cosines[2], cosines[1]], [cosines[2], 1, cosines[0]], [cosines[1], cosines[0], 1]])
    # The height over a face is one over the length of the reciprocal vector.
    height = 1 / np.sqrt(np.diag(np.linalg.inv(metric)).max())
    volume = np.sqrt(np.linalg.det(metric))
    if height < MIN_HEIGHT * (1 - 1e-9) or volume < MIN_VOLUME * len(numbers) * (1 + _SAFE):
        raise CrystalError("geometry", f"{len(numbers)} atoms in {volume:.2f} Å³, thinnest {height:.2f} Å")
    i, j = np.triu_indices(len(numbers), 1)
    d = frac[i] - frac[j]
    d -= np.round(d)
    nearest = np.sqrt(np.einsum("ki,ij,kj->k", d, metric, d).min(initial=np.inf))
    if nearest < MIN_DISTANCE * (1 + _SAFE):
        raise CrystalError("geometry", f"two atoms are {nearest:.2f} Å apart")


def shuffle(ids: np.ndarray, newline: int, zero: int, decimals: int, rng: np.random.Generator) -> np.ndarray:
    """The tokens (T,) of a crystal moved by a random number of steps, with its atoms in random order.

    newline, zero: the tokens of the line end and of "0".
    """
    ids = np.array(ids)
    ids[-1] = newline
    ends = np.flatnonzero(ids == newline) + 1
    starts, stops = ends[1:-1:2], ends[3::2]
    # From the end of an atom's line: z's digits, the point, "0", a blank, y's digits, ...
    width = decimals + 3
    back = np.arange(3)[:, None] * width + np.arange(decimals)[None]
    places = (stops - (3 * width - 2))[:, None, None] + back  # (N, 3, decimals)
    powers = 10 ** np.arange(decimals)[::-1]
    values = (ids[places] - zero) @ powers + rng.integers(0, 10**decimals, 3)
    ids[places] = values[..., None] // powers % 10 + zero
    order = rng.permutation(len(starts))
    lengths = (stops - starts)[order]
    begins = np.cumsum(lengths) - lengths
    source = np.repeat(starts[order] - begins, lengths) + np.arange(int(lengths.sum()))
    shuffled = np.concatenate([ids[: ends[1]], ids[source]])
    shuffled[-1] = EOS
    return shuffled
