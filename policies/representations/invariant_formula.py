"""The formula that one sequence is writing: which element and which count may come next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """What is asked (group, n: 0 for nothing; owed: elements) and (Z, count) so far; z: what a count must follow.

    max_atoms: the most where n is not asked for. Raises UserError where no formula is as asked.
    """

    max_atoms: int
    group: int
    n: int
    owed: frozenset[int]
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
        return _elements(*self._so_far)

    def numbers(self) -> Counts:
        """The counts that may come next, after the element `z`."""
        if self.asked is not None and self.asked.formula is not None:
            return tuple(sorted({b[self.z] for b in self.budgets}))
        return tuple(_numbers(True, self.z, *self._so_far)) or tuple(_numbers(False, self.z, *self._so_far))

    def take_number(self, count: int) -> None:
        """The count of `z` was written."""
        self.written.append((self.z, count))
        self.owed -= {self.z}
        self.budgets = [b for b in self.budgets if b.get(self.z) == count]
        if self._neutral:
            self.charges = self.charges.plus(Charges.of(self.z).times(count))
        self.z = 0

    @property
    def _neutral(self) -> bool:
        """Whether charges must be counted; a formula that is asked for settles them by itself."""
        return self.asked is not None and self.asked.neutral and self.asked.formula is None

    @property
    def _so_far(self) -> tuple[int, int, Counts, int, bool, int, frozenset[int], frozenset[int] | None, Charges | None]:
        """What of all this decides what may come next."""
        most = self.max_atoms if self.asked is None else min(self.max_atoms, self.asked.max_atoms or self.max_atoms)
        left = (self.n or most) - sum(c for _, c in self.written)
        last = ranks()[self.written[-1][0]] if self.written else -1
        return (self.max_atoms, self.group, self.counts, left, self.n > 0, last, self.owed,
                self.asked.elements if self.asked is not None else None, self.charges if self._neutral else None)

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


@cache
def _after(rank: int, allowed: frozenset[int] | None) -> frozenset[int]:
    """The elements that may come after one of a rank."""
    return frozenset(z for z in range(1, MAX_Z + 1) if ranks()[z] > rank and (allowed is None or z in allowed))


@cache
def _by_more(last: int, owed: frozenset[int], allowed: frozenset[int] | None) -> list[tuple[int, list[int]]]:
    """The elements that may come after one of a rank, by how many must follow them: see `next_counts`."""
    after = _after(last, allowed)
    end = min(owed, key=lambda z: ranks()[z]) if owed else max(after, key=lambda z: ranks()[z], default=0)
    before = [z for z in after if ranks()[z] < ranks()[end]]
    more = len(owed - {end}) if _after(ranks()[end], allowed) else -1
    return [(len(owed), before), (more, [end] if end in after else [])]


@cache
def _elements(max_atoms: int, group: int, counts: Counts, left: int, exact: bool, last: int, owed: frozenset[int],
              allowed: frozenset[int] | None, charges: Charges | None) -> np.ndarray:
    """`Formula.elements`. last: the rank of the element before. charges: None where they do not matter."""
    good = np.zeros(MAX_Z + 1, bool)
    for proper in (True, False):
        for more, some in _by_more(last, owed, allowed) if left and not good.any() else ():
            if charges is not None:
                some = [z for z in some if any(_numbers(proper, z, max_atoms, group, counts, left, exact, last, owed,
                                                        allowed, charges))]
            elif some and not next_counts(max_atoms, group, counts, left, exact, more)[proper]:
                continue
            good[some] = True
    if counts and not owed and not (exact and left) and (charges is None or charges.closes):
        symmetric = exact or not group or can_have(max_atoms, group, counts)
        good[0] = symmetric or not good.any()
    return good


def _numbers(proper: bool, z: int, max_atoms: int, group: int, counts: Counts, left: int, exact: bool, last: int,
             owed: frozenset[int], allowed: frozenset[int] | None, charges: Charges | None) -> Iterator[int]:
    """Counts of an element that leave something that can be completed; proper: only those with the group."""
    owed, after = owed - {z}, _after(ranks()[z], allowed)
    for c in next_counts(max_atoms, group, counts, left, exact, len(owed) if after else -1)[proper]:
        if charges is None or _closes(max_atoms, group, tuple(sorted((*counts, c))), left - c, exact, owed, after,
                                      charges.plus(Charges.of(z).times(c))):
            yield c


@cache
def _closes(max_atoms: int, group: int, counts: Counts, left: int, exact: bool, owed: frozenset[int],
            after: frozenset[int], charges: Charges) -> bool:
    """Whether these charges can be brought to zero."""
    start = int(tables(max_atoms).base[group or 1])  # in P1 everything can be made
    return charges.plus(charges_to_come(max_atoms, start, counts, left, exact, owed, after)).closes


@cache
def next_counts(max_atoms: int, group: int, counts: Counts, left: int, exact: bool, more: int
                ) -> tuple[Counts, Counts]:
    """How many atoms the next element of a formula may have, and those with which the crystal can have its group.

    counts: those before. left: atoms left, to be used up if `exact`. more: how many elements must follow, at least; -1
    where none can. group: the one it must be makeable in, 0 for any.
    """
    good = tuple(c for c in range(1, left + 1) if _leaves(max_atoms, group, (*counts, c), left - c, exact, more))
    if not group or not exact:
        return good, good
    return good, tuple(c for c in good if can_have(max_atoms, group, (*counts, c), left - c))


def _leaves(max_atoms: int, group: int, counts: Counts, rest: int, exact: bool, more: int) -> bool:
    """Whether a formula with these counts can be completed with `rest` more atoms."""
    if rest < more or (more < 0 and exact and rest):
        return False
    if not group:
        return True
    if not _alone(max_atoms, group)[counts[-1]]:
        return False  # quickly found, and so for most of those that are not
    if exact and more < 2:
        return makeable(max_atoms, group, (*counts, rest))
    if exact:
        return any(makeable(max_atoms, group, (*counts, *parts)) for parts in _parts(rest, max(more, min(rest, 1))))
    if rest < more * smallest_free(max_atoms, group):
        return any(makeable(max_atoms, group, (*counts, *parts)) for n in range(more, rest + 1)
                   for parts in _parts(n, more))
    return makeable(max_atoms, group, counts)


@cache
def _alone(max_atoms: int, group: int) -> list[bool]:
    """By number whether so many atoms of one element can be made in a group."""
    t = tables(max_atoms)
    return t.reach[t.base[group]].tolist()


def _parts(n: int, number: int, least: int = 1) -> Iterator[Counts]:
    """All ways to write n as a sum of so many numbers, in rising order."""
    if not number and not n:
        yield ()
    for first in range(least, n // number + 1 if number else least):
        for others in _parts(n - first, number - 1, first):
            yield first, *others


@cache
def charges_to_come(max_atoms: int, start: int, counts: Counts, left: int, exact: bool, owed: frozenset[int],
                    allowed: frozenset[int]) -> Charges:
    """Total charges of `left` atoms (or up to so many) of allowed elements, all `owed` among them, on positions from a
    row of the tables on that can hold elements of the counts (sorted) as well."""
    t = tables(max_atoms)
    m = int(t.atoms[start])
    if m > max_atoms or t.dof[start] > 0:
        if not all(bool(t.reach[start, c]) for c in counts):
            return Charges(0, 0)
        return _sums(max_atoms, start, left, exact, owed, allowed)

    def on(counts: Counts, left: int, owed: frozenset[int]) -> Charges:
        return charges_to_come(max_atoms, start + 1, counts, left, exact, owed, allowed)

    found = on(counts, left, owed)
    for c in sorted({c for c in counts if c >= m}):
        i = counts.index(c)
        found |= on(tuple(sorted((*counts[:i], *counts[i + 1 :], *([c - m] if c > m else [])))), left, owed)
    if m <= left:
        found |= _any_of(allowed, m).plus(on(counts, left - m, owed))
        for z in owed:
            found |= Charges.of(z).times(m).plus(on(counts, left - m, owed - {z}))
    return found
