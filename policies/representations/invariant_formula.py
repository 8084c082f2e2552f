"""The formula that one sequence is writing: which element and which count may come next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from policies.representations.asked import Asked, Charges
from policies.representations.base import MAX_Z
from policies.representations.invariant import ranks
from policies.representations.invariant_occupations import Counts, can_have, makeable, smallest_free
from policies.representations.orbit_chemistry import _any_of, _sums
from policies.representations.orbit_tables import tables
from rlgen.types import UserError


@dataclass
class Formula:
    """What is asked (group, n, owed: 0 for nothing) and (Z, count) so far; z: the element that a count must follow.

    most: the most atoms where n is not asked for. Raises UserError where no formula is as asked.
    """

    max_atoms: int
    group: int
    n: int
    owed: int
    asked: Asked | None = None
    written: list[tuple[int, int]] = field(default_factory=list)
    z: int = 0
    charges: Charges = field(default_factory=Charges.none)
    budgets: list[dict[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.asked is not None and self.asked.formula is not None:
            self.budgets = self._makeable(self.asked.budgets(self.max_atoms, self.n))
        if not self.elements()[1:].any():
            asked = f" with {self.asked}" if self.asked else ""
            raise UserError(f"no choice of Wyckoff positions of space group {self.group or '1 to 230'} has "
                            f"{self.n or 'any number of'} atoms in the primitive cell{asked}")

    @property
    def groups(self) -> Sequence[int]:
        """Those asked for."""
        return [self.group] if self.group else range(1, 231)

    @property
    def counts(self) -> Counts:
        return tuple(sorted(c for _, c in self.written))

    def elements(self) -> np.ndarray:
        """(119,) bool, by atomic number: what may come next; at 0 the end of the formula."""
        if self.asked is not None and self.asked.formula is not None:
            return self._elements_of_budgets()
        good = _elements(self.max_atoms, self.group, self.counts, self._left, self.n > 0, self._last, self.owed,
                         self._allowed)
        if not self._neutral:
            return good
        good = good.copy()
        good[0] &= self.charges.closes
        for z in good[1:].nonzero()[0] + 1:
            good[z] = any(self._closes(int(z), c) for c in self._numbers(int(z))[0])
        good[0] |= not good.any()  # what has more symmetry than its group may end if nothing else is neutral
        return good

    def numbers(self) -> Counts:
        """The counts that may come next, after the element `z`."""
        if self.asked is not None and self.asked.formula is not None:
            return tuple(sorted({b[self.z] for b in self.budgets}))
        good, proper = self._numbers(self.z)
        if self._neutral:
            good, proper = (tuple(c for c in some if self._closes(self.z, c)) for some in (good, proper))
        return proper or good

    def take_number(self, count: int) -> None:
        """The count of `z` was written."""
        self.written.append((self.z, count))
        self.owed = 0 if self.z == self.owed else self.owed
        self.budgets = [b for b in self.budgets if b.get(self.z) == count]
        if self._neutral:
            self.charges = self.charges.plus(Charges.of(self.z).times(count))
        self.z = 0

    @property
    def _neutral(self) -> bool:
        """Whether charges must be counted; a formula that is asked for settles them by itself."""
        return self.asked is not None and self.asked.neutral and self.asked.formula is None

    @property
    def _allowed(self) -> frozenset[int] | None:
        return self.asked.elements if self.asked is not None else None

    @property
    def _left(self) -> int:
        most = self.max_atoms if self.asked is None else min(self.max_atoms, self.asked.max_atoms or self.max_atoms)
        return (self.n or most) - sum(c for _, c in self.written)

    @property
    def _last(self) -> int:
        return ranks()[self.written[-1][0]] if self.written else -1

    def _makeable(self, budgets: Sequence[dict[int, int]]) -> list[dict[int, int]]:
        """Those that positions of the group can hold, and with which it can be the group if there are such."""
        if not self.group:
            return list(budgets)
        good = [b for b in budgets if makeable(self.max_atoms, self.group, tuple(b.values()))]
        proper = [b for b in good if can_have(self.max_atoms, self.group, tuple(b.values()))]
        return proper or good

    def _elements_of_budgets(self) -> np.ndarray:
        good = np.zeros(MAX_Z + 1, bool)
        if self.budgets:
            order = sorted(self.budgets[0], key=lambda z: ranks()[z])
            good[order[len(self.written)] if len(self.written) < len(order) else 0] = True
        return good

    def _numbers(self, z: int) -> tuple[Counts, Counts]:
        more = _more(z, self.owed, _after(ranks()[z], self._allowed))
        return next_counts(self.max_atoms, self.group, self.counts, self._left, self.n > 0, more)

    def _closes(self, z: int, count: int) -> bool:
        return _closes(self.max_atoms, self.group, self.counts, self._left, self.n > 0, self.owed, self.charges, z,
                       count, _after(ranks()[z], self._allowed))


@cache
def _after(rank: int, allowed: frozenset[int] | None) -> frozenset[int]:
    """The elements that may come after one of a rank."""
    return frozenset(z for z in range(1, MAX_Z + 1) if ranks()[z] > rank and (allowed is None or z in allowed))


def _more(z: int, owed: int, after: frozenset[int]) -> bool | None:
    """Whether another element must follow z (True), cannot (False), or may (None)."""
    if owed and z != owed:
        return True
    return None if after else False


@cache
def _elements(max_atoms: int, group: int, counts: Counts, left: int, exact: bool, last: int, owed: int,
              allowed: frozenset[int] | None) -> np.ndarray:
    """`Formula.elements`, the charge aside."""
    good, proper = np.zeros(MAX_Z + 1, bool), np.zeros(MAX_Z + 1, bool)
    for z in _after(last, allowed) if left else ():
        if not owed or ranks()[z] <= ranks()[owed]:
            some = next_counts(max_atoms, group, counts, left, exact, _more(z, owed, _after(ranks()[z], allowed)))
            good[z], proper[z] = bool(some[0]), bool(some[1])
    good = proper if proper.any() else good
    if counts and not owed and not (exact and left):
        symmetric = exact or not group or can_have(max_atoms, group, counts)
        good[0] = symmetric or not good.any()
    return good


@cache
def _closes(max_atoms: int, group: int, counts: Counts, left: int, exact: bool, owed: int, charges: Charges, z: int,
            count: int, after: frozenset[int]) -> bool:
    """Whether a count of an element leaves something that can be completed without charge."""
    start = int(tables(max_atoms).base[group or 1])  # in P1 everything can be made
    rest = charges_to_come(max_atoms, start, tuple(sorted((*counts, count))), left - count, exact,
                           0 if z == owed else owed, after)
    return charges.plus(Charges.of(z).times(count)).plus(rest).closes


@cache
def next_counts(max_atoms: int, group: int, counts: Counts, left: int, exact: bool, more: bool | None
                ) -> tuple[Counts, Counts]:
    """How many atoms the next element of a formula may have, and those with which the crystal can have its group.

    counts: those before. left: atoms left, to be used up if `exact`. more: whether another element must follow it
    (True), cannot (False), or may (None). group: the one it must be makeable in, 0 for any.
    """
    good = tuple(c for c in range(1, left + 1) if _leaves(max_atoms, group, (*counts, c), left - c, exact, more))
    if not group or not exact:
        return good, good
    return good, tuple(c for c in good if can_have(max_atoms, group, (*counts, c), left - c))


def _leaves(max_atoms: int, group: int, counts: Counts, rest: int, exact: bool, more: bool | None) -> bool:
    """Whether a formula with these counts can be completed with `rest` more atoms."""
    if (more is True and not rest) or (more is False and exact and rest):
        return False
    if not group:
        return True
    if not makeable(max_atoms, group, counts[-1:]):
        return False  # quickly found, and so for most of those that are not
    if exact:
        return makeable(max_atoms, group, (*counts, rest))
    if more is True and rest < smallest_free(max_atoms, group):
        return any(makeable(max_atoms, group, (*counts, n)) for n in range(1, rest + 1))
    return makeable(max_atoms, group, counts)


@cache
def charges_to_come(max_atoms: int, start: int, counts: Counts, left: int, exact: bool, owed: int,
                    allowed: frozenset[int]) -> Charges:
    """Total charges of `left` atoms (or up to so many) of allowed elements, `owed` among them unless it is 0, on
    positions from a row of the tables on that can hold elements of the counts (sorted) as well."""
    t = tables(max_atoms)
    m = int(t.atoms[start])
    if m > max_atoms or t.dof[start] > 0:
        if not all(bool(t.reach[start, c]) for c in counts):
            return Charges(0, 0)
        return _sums(max_atoms, start, left, exact, owed, allowed)

    def on(counts: Counts, left: int, owed: int) -> Charges:
        return charges_to_come(max_atoms, start + 1, counts, left, exact, owed, allowed)

    found = on(counts, left, owed)
    for c in sorted({c for c in counts if c >= m}):
        i = counts.index(c)
        found |= on(tuple(sorted((*counts[:i], *counts[i + 1 :], *([c - m] if c > m else [])))), left, owed)
    if m <= left:
        found |= _any_of(allowed, m).plus(on(counts, left - m, owed))
        if owed:
            found |= Charges.of(owed).times(m).plus(on(counts, left - m, 0))
    return found
