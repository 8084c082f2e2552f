"""The one grid on which lattices and coordinates are written: the same to encode and to decode, and never clipped."""

from __future__ import annotations

import numpy as np

from rlgen.types import CrystalError

#: Fractional coordinates are multiples of 1/Q; 1/2, 1/3, 1/4, 1/6, 1/7, 1/8, 1/9, 1/12, 1/16 are exact.
Q = 1008
LENGTH_STEPS = 100  # per Å
ANGLE_STEPS = 20  # per degree: 0.05°, so that 60, 90 and 120 are exact
MIN_LENGTH, MAX_LENGTH = 1, 128  # Å, half open
MIN_ANGLE, MAX_ANGLE = 30, 150  # degrees, closed
#: Values exactly between two grid points must round the same way whatever the noise of floating point.
_TIE = 1e-4


def quantise_coordinates(frac: np.ndarray) -> np.ndarray:
    """Grid indices in 0..Q-1 of fractional coordinates of any shape."""
    return np.floor(frac * Q + 0.5 + _TIE).astype(np.int64) % Q


def quantise_lattice(parameters: np.ndarray) -> np.ndarray:
    """(6,) a, b, c (Å), alpha, beta, gamma (degrees) -> (6,) integers in steps of 0.01 Å and 0.05°.

    Raises CrystalError("geometry") where a value is off the grid's range.
    """
    steps = np.array([LENGTH_STEPS] * 3 + [ANGLE_STEPS] * 3)
    k = np.floor(np.asarray(parameters) * steps + 0.5 + _TIE).astype(np.int64)
    if (k[:3] < MIN_LENGTH * LENGTH_STEPS).any() or (k[:3] >= MAX_LENGTH * LENGTH_STEPS).any():
        raise CrystalError("geometry", f"lattice length outside {MIN_LENGTH} to {MAX_LENGTH} Å: {parameters[:3]}")
    if (k[3:] < MIN_ANGLE * ANGLE_STEPS).any() or (k[3:] > MAX_ANGLE * ANGLE_STEPS).any():
        raise CrystalError("geometry", f"lattice angle outside {MIN_ANGLE} to {MAX_ANGLE} degrees: {parameters[3:]}")
    return k


def lattice_parameters(k: np.ndarray) -> np.ndarray:
    """The inverse of `quantise_lattice`: (6,) grid indices -> (6,) Å and degrees."""
    return np.asarray(k, dtype=float) / np.array([LENGTH_STEPS] * 3 + [ANGLE_STEPS] * 3)
