"""Spread: crystals that are unlike the others of their batch, in elements, space group and prototype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pymatgen.core import Structure

from rlgen.protostructure import Protostructure, read_label
from rlgen.reference import protostructure_label
from rlgen.types import Condition, UserError


@dataclass(frozen=True)
class Spread:
    """−ln z / ln B, where z is the mean similarity of a crystal to all B of its batch, itself included.

    It is 0 for one of B copies, 1 for one that has nothing in common with any other, and 1 for a batch of one.

    Two crystals are alike by `chemistry` × Σ_e min(share of element e in either) + (1 − chemistry) × (½ if they are in
    one space group + ½ if they are of one prototype). The mean of −ln z is the logarithm of the effective number of
    crystals that are not alike (order 1 of Leinster and Cobbold, Ecology 93, 477 (2012)). A crystal whose symmetry
    cannot be determined is neither measured nor one of the B.
    """

    chemistry: float = 0.5

    name: ClassVar[str] = "spread"
    unit: ClassVar[str] = ""
    per_sample: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.chemistry <= 1:
            raise UserError(f"spread chemistry={self.chemistry}: must be between 0 and 1")

    def measure(self, structures: Sequence[Structure], conditions: Sequence[Condition]) -> np.ndarray:
        return self.measure_with_reasons(structures, conditions)[0]

    def measure_with_reasons(
        self, structures: Sequence[Structure], conditions: Sequence[Condition]
    ) -> tuple[np.ndarray, list[str]]:
        """Raw values (B,), and why one is NaN ("" where it is not)."""
        found = [read_label(protostructure_label(structure)) for structure in structures]
        rows = [i for i, one in enumerate(found) if one is not None]
        raw = np.full(len(structures), np.nan)
        if rows:
            alike = self._similarity([structures[i] for i in rows], [one for one in found if one is not None])
            raw[rows] = -np.log(alike.mean(1)) / np.log(len(rows)) if len(rows) > 1 else 1.0
        return raw, ["" if one is not None else "symmetry could not be determined" for one in found]

    def _similarity(self, structures: list[Structure], found: list[Protostructure]) -> np.ndarray:
        """(B, B) in [0, 1], 1 for copies."""
        shares = np.zeros((len(structures), 119))
        for row, structure in zip(shares, structures, strict=True):
            for number in structure.atomic_numbers:
                row[number] += 1 / len(structure)
        chemistry = np.stack([np.minimum(shares, row).sum(1) for row in shares])
        groups = np.array([one.space_group for one in found])
        prototypes = np.unique([one.prototype for one in found], return_inverse=True)[1]
        built = ((groups[:, None] == groups) + 1.0 * (prototypes[:, None] == prototypes)) / 2
        return self.chemistry * chemistry + (1 - self.chemistry) * built

    def transform(self, raw: np.ndarray) -> np.ndarray:
        return np.asarray(raw, dtype=float)
