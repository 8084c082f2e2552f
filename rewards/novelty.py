"""Novelty: is the crystal absent from a reference of known crystals?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pymatgen.core import Structure

from rlgen.reference import FIELD, Reference, Tolerance
from rlgen.types import Condition


@dataclass(frozen=True)
class Novelty:
    """1 for a crystal that the reference does not have, 0 for one that it has.

    reference: "shipped:train" (labels of MP-20's training set), "shipped:all", or a data set such as "mp20:train" or
    "my.csv" or an index of `python -m rlgen.build_reference` ("known.sqlite"), whose crystals are then compared by
    StructureMatcher with the tolerances ltol (share of a length), stol (share of the cube root of the volume per atom)
    and angle_tol (degrees). A crystal whose symmetry cannot be determined is not measured against labels: it could be
    anything, and must not earn by that.
    """

    reference: str = "shipped:train"
    ltol: float = FIELD.ltol
    stol: float = FIELD.stol
    angle_tol: float = FIELD.angle_tol

    name: ClassVar[str] = "novelty"
    unit: ClassVar[str] = ""
    per_sample: ClassVar[bool] = True

    def warm_up(self) -> None:
        """Load the reference."""
        self._known()

    def _known(self) -> Reference:
        return Reference.load(self.reference, Tolerance(self.ltol, self.stol, self.angle_tol))

    def measure(self, structures: Sequence[Structure], conditions: Sequence[Condition]) -> np.ndarray:
        return self.measure_with_reasons(structures, conditions)[0]

    def measure_with_reasons(
        self, structures: Sequence[Structure], conditions: Sequence[Condition]
    ) -> tuple[np.ndarray, list[str]]:
        """Raw values (B,), and why one is NaN ("" where it is not)."""
        reference = self._known()
        raw, reasons = np.full(len(structures), np.nan), [""] * len(structures)
        for i, structure in enumerate(structures):
            known = reference.known(structure)
            if known is None:
                reasons[i] = "symmetry could not be determined"
            else:
                raw[i] = float(not known)
        return raw, reasons

    def transform(self, raw: np.ndarray) -> np.ndarray:
        return np.asarray(raw, dtype=float)
