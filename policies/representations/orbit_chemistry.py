"""Hard conditions on compositions made of Wyckoff positions: which choices can still be completed exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from policies.representations.asked import Asked, Charges, owing
from policies.representations.base import MAX_Z
from policies.representations.orbit_tables import tables
from rlgen.types import Condition, UserError

if TYPE_CHECKING:
    from policies.representations.orbits import Orbits

Counts = tuple[int, ...]


@dataclass
class _Row:
    """One sequence: what is asked, its number of atoms (0: not asked), elements owed, compositions still possible."""

    asked: Asked
    n: int
    owed: frozenset[int]
    budgets: list[dict[int, int]] = field(default_factory=list)
    placed: int = 0
    charges: Charges = field(default_factory=Charges.none)

    @property
    def allowed(self) -> frozenset[int]:
        return self.asked.elements or _ALL


_ALL = frozenset(range(1, MAX_Z + 1))


class Chemistry:
    """The rows of a batch that have hard conditions; all others pass through every method unchanged."""

    def __init__(self, max_atoms: int, rows: dict[int, _Row]):
        self.max_atoms, self.rows = max_atoms, rows

    @classmethod
    def of(cls, representation: Orbits, prompts: torch.Tensor, conditions: Sequence[Condition] | None) -> Chemistry:
        rows = {}
        for i, condition in enumerate(conditions or ()):
            asked = Asked.of(condition)
            if asked is not None:
                group, n, z = (int(x) for x in representation.read_prompts(prompts[i : i + 1]))
                budgets = asked.budgets(representation.max_atoms, n) if asked.formula else []
                row = rows[i] = _Row(asked, n, owing(z, asked), budgets)
                chemistry = cls(representation.max_atoms, {i: row})
                if not chemistry._can_begin(row, group or 1):  # in P1 everything can be made
                    raise UserError(f"no choice of Wyckoff positions of space group {group or '1 to 230'} has all of "
                                    f"{dict(condition)}")
        return cls(representation.max_atoms, rows)

    def keep(self, rows: int) -> None:
        self.rows = {i: row for i, row in self.rows.items() if i < rows}

    def limit(self, most: np.ndarray) -> None:
        """Lower (B,) greatest numbers of atoms to those asked for."""
        for i, row in self.rows.items():
            if row.asked.max_atoms is not None:
                most[i] = min(int(most[i]), row.asked.max_atoms)
            if row.budgets:
                most[i] = min(int(most[i]), max(sum(b.values()) for b in row.budgets))

    def raise_to_least(self, fewest: np.ndarray, group: np.ndarray) -> None:
        """Raise (B,) least numbers of atoms to those that what is asked takes in each row's group (B,)."""
        for i, row in self.rows.items():
            start = int(tables(self.max_atoms).base[group[i]])
            if row.asked.formula:
                row.budgets = [b for b in row.budgets if _makeable(self.max_atoms, start, _counts(b))]
                fewest[i] = min((sum(b.values()) for b in row.budgets), default=int(fewest[i]))
            else:
                fewest[i] = self._fewest(row, start) or fewest[i]

    def fit(self, rows: np.ndarray, most: np.ndarray) -> None:
        """Give up the compositions of more atoms than the cells of these rows have room for."""
        for i in rows.tolist():
            if (row := self.rows.get(i)) is not None:
                row.budgets = [b for b in row.budgets if sum(b.values()) <= int(most[i])]

    def groups(self, rows: np.ndarray, good: np.ndarray) -> np.ndarray:
        """Narrow (R, 231) groups to those in which what is asked can be made."""
        for r, row in self._chosen(rows):
            for g in np.flatnonzero(good[r]).tolist():
                good[r, g] = self._can_begin(row, g)
        return good

    def orbits(self, rows: np.ndarray, at: np.ndarray, after: np.ndarray, left: np.ndarray,
               good: np.ndarray) -> np.ndarray:
        """Narrow (R, P) positions (rows of the tables) to those that some element can take."""
        for r, row in self._chosen(rows):
            for j in np.flatnonzero(good[r]).tolist():
                good[r, j] = any(self._fits(row, z, int(at[r, j]), int(after[r, j]), int(left[r]))
                                 for z in self._candidates(row))
        return good

    def elements(self, rows: np.ndarray, site: np.ndarray, after: np.ndarray, left: np.ndarray,
                 good: np.ndarray) -> np.ndarray:
        """Narrow (R, 118) elements of the positions being written; left: (R,) atoms before they are placed."""
        for r, row in self._chosen(rows):
            fitting = {z for z in self._candidates(row)
                       if self._fits(row, z, int(site[r]), int(after[r]), int(left[r]))}
            good[r] &= [z in fitting for z in range(1, MAX_Z + 1)]
        return good

    def ends(self, rows: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Narrow (R,) possible ends to those at which what is asked is met."""
        for r, row in self._chosen(rows):
            met = any(not any(b.values()) for b in row.budgets) if row.asked.formula else True
            end[r] &= met and not row.owed and (not self._counts_charge(row) or row.charges.closes)
        return end

    def take(self, rows: np.ndarray, site: np.ndarray, z: np.ndarray) -> None:
        """A position (row of the tables) was given an element."""
        for r, row in self._chosen(rows):
            element, m = int(z[r]), int(tables(self.max_atoms).atoms[site[r]])
            row.placed += m
            row.owed -= {element}
            row.budgets = [b | {element: b[element] - m} for b in row.budgets if b.get(element, 0) >= m]
            if self._counts_charge(row) and element:
                row.charges = row.charges.plus(Charges.of(element).times(m))

    def _chosen(self, rows: np.ndarray) -> list[tuple[int, _Row]]:
        if not self.rows:
            return []
        return [(r, self.rows[i]) for r, i in enumerate(rows.tolist()) if i in self.rows]

    def _counts_charge(self, row: _Row) -> bool:
        """A formula settles the charge by itself."""
        return row.asked.neutral and row.asked.formula is None

    def _candidates(self, row: _Row) -> list[int]:
        if row.asked.formula:
            return sorted({z for b in row.budgets for z, count in b.items() if count})
        return sorted(row.allowed)

    def _can_begin(self, row: _Row, group: int) -> bool:
        start = int(tables(self.max_atoms).base[group])
        if row.asked.formula:
            return any(_makeable(self.max_atoms, start, _counts(b)) for b in row.budgets)
        return self._fewest(row, start) > 0

    def _fewest(self, row: _Row, start: int) -> int:
        """The least number of atoms, or the one asked for, that can have what is asked; 0 if none can."""
        most = min(self.max_atoms, row.asked.max_atoms or self.max_atoms)
        return next((n for n in ([row.n] if row.n else range(1, most + 1)) if self._closes(row, start, n, True)), 0)

    def _closes(self, row: _Row, start: int, left: int, exact: bool, z: int = 0, m: int = 0) -> bool:
        """Whether `left` atoms, or up to so many, can be what is still to come, after m of element z."""
        owed = row.owed - {z}
        if not self._counts_charge(row):
            return len(owed) <= most_sites(self.max_atoms, start, left, exact)
        rest = _sums(self.max_atoms, start, left, exact, owed, row.allowed)
        return row.charges.plus(Charges.of(z).times(m) if m else Charges.none()).plus(rest).closes

    def _fits(self, row: _Row, z: int, site: int, after: int, left: int) -> bool:
        """Whether element z on a position leaves something that can be completed."""
        m = int(tables(self.max_atoms).atoms[site])
        if row.asked.formula:
            return any(_makeable(self.max_atoms, after, _counts(b | {z: b[z] - m}))
                       for b in row.budgets if b.get(z, 0) >= m)
        return self._closes(row, after, left - m, row.n > 0, z, m)


def _counts(budget: dict[int, int]) -> Counts:
    return tuple(sorted(count for count in budget.values() if count))


@cache
def _makeable(max_atoms: int, start: int, counts: Counts) -> bool:
    """Whether positions from a row of the tables on can hold so many atoms of each of some elements."""
    t = tables(max_atoms)
    if not counts:
        return True
    m = int(t.atoms[start])
    if m > max_atoms:
        return False
    if t.dof[start] > 0:  # so have all that follow: each can be used again and again, by every element
        return all(bool(t.reach[start, c]) for c in counts)
    if _makeable(max_atoms, start + 1, counts):
        return True
    for i, c in enumerate(counts):
        if c >= m:
            rest = tuple(sorted((*counts[:i], *counts[i + 1 :], *([c - m] if c > m else []))))
            if _makeable(max_atoms, start + 1, rest):
                return True
    return False


@cache
def most_sites(max_atoms: int, start: int, left: int, exact: bool) -> int:
    """The most sites, each of which may be of another element, that positions from a row of the tables on can have with
    `left` atoms, or up to so many; -1 for none with exactly so many."""
    t = tables(max_atoms)
    m = int(t.atoms[start])
    if m > max_atoms or left == 0:
        return 0 if left == 0 or not exact else -1
    found = most_sites(max_atoms, start + 1, left, exact)
    if m <= left:
        more = most_sites(max_atoms, start if t.dof[start] > 0 else start + 1, left - m, exact)
        found = max(found, more + 1 if more >= 0 else -1)
    return found


@cache
def _sums(max_atoms: int, start: int, left: int, exact: bool, owed: frozenset[int], allowed: frozenset[int]) -> Charges:
    """Total charges of what can still be written: exactly `left` atoms, or up to so many; all `owed` among them."""
    if len(owed) > most_sites(max_atoms, start, left, exact):
        return Charges(0, 0)
    t = tables(max_atoms)
    found = Charges.none() if not owed and (left == 0 or not exact) else Charges(0, 0)
    m = int(t.atoms[start])
    if m > max_atoms or left == 0:
        return found
    found |= _sums(max_atoms, start + 1, left, exact, owed, allowed)
    if m <= left:
        after = start if t.dof[start] > 0 else start + 1
        found |= _any_of(allowed, m).plus(_sums(max_atoms, after, left - m, exact, owed, allowed))
        for z in owed:
            found |= Charges.of(z).times(m).plus(_sums(max_atoms, after, left - m, exact, owed - {z}, allowed))
    return found


@cache
def _any_of(elements: frozenset[int], m: int) -> Charges:
    """The total charges of m atoms of any one of some elements."""
    found = Charges(0, 0)
    for z in elements:
        found |= Charges.of(z).times(m)
    return found
