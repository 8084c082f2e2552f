"""Crystals from a space group and its asymmetric unit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import moyopy
import numpy as np
from pymatgen.core import Lattice, Structure

#: Images (in fractions of the cell) that are nearer than this are one atom.
SAME = 1e-4


@cache
def _numbers() -> dict[str, int]:
    """Of each short symbol, without spaces."""
    return {moyopy.SpaceGroupType(number).hm_short.replace(" ", ""): number for number in range(1, 231)}


def from_spacegroup(group: int | str, lattice: Lattice, species: Sequence[str],
                    sites: Sequence[Sequence[float]]) -> Structure:  # fmt: skip
    """The conventional cell that a space group makes of sites (N, 3; fractions of the cell) of N elements.

    group: its number, or its short symbol, such as "P6_3/mmc"; KeyError where there is none. Settings are the
    International Tables' first: unique axis b, hexagonal axes, origin choice 1. It is what pymatgen's
    `Structure.from_spacegroup` builds, which takes up to a second because it compares all pairs of operations.
    """
    number = _numbers()[group] if isinstance(group, str) else group
    operations = moyopy.operations_from_number(number, setting=moyopy.Setting.spglib())
    rotations, shifts = np.array(operations.rotations), np.array(operations.translations)
    elements: list[str] = []
    atoms: list[np.ndarray] = []
    for element, site in zip(species, sites, strict=True):
        images = (rotations @ np.array(site, dtype=float) + shifts) % 1.0
        apart = images[:, None] - images
        apart = np.abs(apart - np.rint(apart)).max(-1)
        first = (apart < SAME).argmax(1) == np.arange(len(images))
        atoms.extend(images[first])
        elements += [element] * int(first.sum())
    return Structure(lattice, elements, atoms)
