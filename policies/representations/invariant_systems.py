"""The formula that one sequence is writing where a crystal system is asked for, but no space group of it."""

from __future__ import annotations

import numpy as np

from policies.representations.asked import Asked
from policies.representations.base import MAX_Z
from policies.representations.invariant_formula import Formula
from policies.representations.invariant_occupations import Counts
from rlgen.conditions import SYSTEM, groups_of
from rlgen.types import UserError


class FormulaOfSystem:
    """As `Formula`, of any group of a system: what can be completed in one of them may come next."""

    group = 0

    def __init__(self, max_atoms: int, system: int, n: int, owed: frozenset[int], asked: Asked | None):
        """system: 1 to 7. Raises UserError where no formula is as asked in any group."""
        self.written: list[tuple[int, int]] = []
        self._z = 0
        self._possible: list[Formula] = []
        for group in groups_of(name := SYSTEM.names[system - 1]):
            try:
                self._possible.append(Formula(max_atoms, group, n, owed, asked))
            except UserError:  # not in this one
                continue
        if not self._possible:
            raise UserError(f"no {name} space group has a choice of Wyckoff positions for all else that is asked")

    @property
    def groups(self) -> list[int]:
        """Those in which the formula may end here."""
        return [formula.group for formula in self._possible if formula.elements()[0]]

    @property
    def counts(self) -> Counts:
        return tuple(sorted(c for _, c in self.written))

    def elements(self) -> np.ndarray:
        return np.any([np.zeros(MAX_Z + 1, bool), *(formula.elements() for formula in self._possible)], axis=0)

    def numbers(self) -> Counts:
        return tuple(sorted({n for formula in self._possible for n in formula.numbers()}))

    @property
    def z(self) -> int:
        return self._z

    @z.setter
    def z(self, z: int) -> None:
        good = [formula for formula in self._possible if 0 < z <= MAX_Z and formula.elements()[z]]
        self._z, self._possible = z, good
        for formula in self._possible:
            formula.z = z

    def take_number(self, count: int) -> None:
        self.written.append((self.z, count))
        self._possible = [formula for formula in self._possible if count in formula.numbers()]
        for formula in self._possible:
            formula.take_number(count)
