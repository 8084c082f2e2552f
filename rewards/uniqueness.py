"""Uniqueness: crystals that a batch repeats share one reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pymatgen.core import Structure

from rlgen.reference import duplicate_groups
from rlgen.types import Condition


@dataclass(frozen=True)
class Uniqueness:
    """1 / (how often the batch has this crystal). Raw is that count.

    matcher: duplicates are found by StructureMatcher among crystals of one formula; False: by equal labels.
    """

    matcher: bool = True

    name: ClassVar[str] = "uniqueness"
    unit: ClassVar[str] = "copies"
    per_sample: ClassVar[bool] = False
    #: StructureMatcher may hang, so the pool runs the whole batch in a worker, which it can end.
    in_worker: ClassVar[bool] = True

    def measure(self, structures: Sequence[Structure], conditions: Sequence[Condition]) -> np.ndarray:
        groups = duplicate_groups(structures, matcher=self.matcher)
        return np.bincount(groups)[groups].astype(float) if len(groups) else np.zeros(0)

    def transform(self, raw: np.ndarray) -> np.ndarray:
        return 1.0 / np.asarray(raw, dtype=float)
