"""Which atoms may still be written in `text`, where they come in any order: number, composition and charge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache

import torch

from policies.representations.asked import Asked, Charges, owing
from policies.representations.base import MAX_Z
from policies.representations.distances import MIN_VOLUME
from rlgen.types import UserError

ALL = tuple(range(1, MAX_Z + 1))


@cache
def _sums(elements: tuple[int, ...], most: int) -> tuple[list[Charges], list[Charges]]:
    """Charges of exactly k and of at most k atoms of these elements, for k from 0 to `most`."""
    one = Charges.of(elements[0])
    for z in elements[1:]:
        one = one | Charges.of(z)
    exactly, at_most = [Charges.none()], [Charges.none()]
    for _ in range(most):
        exactly.append(exactly[-1].plus(one))
        at_most.append(at_most[-1] | exactly[-1])
    return exactly, at_most


@cache
def _states(z: int) -> tuple[int, ...]:
    charges = Charges.of(z)
    return tuple(i - charges.offset for i in range(charges.bits.bit_length()) if charges.bits >> i & 1)


@cache
def _one_each(elements: frozenset[int]) -> Charges:
    """Charges of one atom of each."""
    total = Charges.none()
    for z in elements:
        total = total.plus(Charges.of(z))
    return total


def _has(charges: Charges, charge: int) -> bool:
    at = charge + charges.offset
    return at >= 0 and bool(charges.bits >> at & 1)


class Budget:
    """The atoms of one crystal with hard conditions. exact: their number, 0 for any up to `most`. owed: Z, 0 for none.

    least: atoms of the smallest crystal that meets all. Raises UserError where none does.
    """

    def __init__(self, asked: Asked, exact: int, owed: int, most: int):
        self.exact, self.owed, self.placed = exact, owing(owed, asked), 0
        self.most = exact or min(most, asked.max_atoms or most)
        self.limit = self.most  # what the sums of charges are tabulated up to
        self.elements = tuple(sorted(asked.elements)) if asked.elements is not None else ALL
        self.counts: Counter[int] = Counter()
        self.options = asked.budgets(self.most, exact) if asked.formula is not None else None
        self.charges = Charges.none() if asked.neutral else None
        sizes = self._sizes()
        if not sizes:
            raise UserError("no crystal meets all that is asked for: number of atoms, elements, formula and charge")
        self.least = sizes[0]

    def _sizes(self) -> list[int]:
        """Numbers of atoms with which all can be met, from the smallest."""
        if self.options is not None:
            return sorted(sum(option.values()) for option in self.options)
        fewest = max(1, len(self.owed))
        sizes = [n for n in range(self.exact or fewest, (self.exact or self.most) + 1) if n >= fewest]
        if self.charges is None:
            return sizes[:1]
        exactly, _ = _sums(self.elements, self.limit)
        return [n for n in sizes if exactly[n - len(self.owed)].plus(_one_each(self.owed)).closes]

    def make_room(self, most: int) -> None:
        """The cell is known: it has room for so many atoms."""
        if not self.exact:
            self.most = min(self.most, most)
        if self.options is not None:
            self.options = [o for o in self.options if sum(o.values()) <= self.most]

    def take(self, z: int) -> None:
        self.placed += 1
        self.counts[z] += 1
        self.owed -= {z}
        if self.options is not None:
            self.options = [o for o in self.options if all(o.get(e, 0) >= n for e, n in self.counts.items())]
        elif self.charges is not None:
            self.charges = self.charges.plus(Charges.of(z))

    def allowed(self) -> set[int]:
        """Elements of which the next atom may be."""
        if self.options is not None:
            return {z for option in self.options for z, n in option.items() if n > self.counts[z]}
        left = self.most - self.placed - 1
        if left < 0:
            return set()
        # What is owed, and of all others those that leave room for it.
        parts = [({z}, self.owed - {z}) for z in self.owed] + [(set(self.elements) - self.owed, self.owed)]
        parts = [(some, owed) for some, owed in parts if len(owed) <= left]
        return {z for some, owed in parts for z in (some if self.charges is None else self._neutral(some, owed, left))}

    def _neutral(self, some: set[int], owed: frozenset[int], left: int) -> set[int]:
        """Those after which `left` more atoms with all that is owed, or fewer where their number is free, can still
        close to no charge."""
        assert self.charges is not None
        sums = _sums(self.elements, self.limit)[0 if self.exact else 1]
        rest = self.charges.plus(_one_each(owed)).plus(sums[left - len(owed)])
        return {z for z in some if any(_has(rest, -q) for q in _states(z))}

    @property
    def may_end(self) -> bool:
        if self.options is not None:
            return any(sum(option.values()) == self.placed for option in self.options)
        whole = self.placed == self.exact if self.exact else self.placed > 0
        return whole and not self.owed and (self.charges is None or self.charges.closes)


class Contents:
    """The atoms of B crystals. placed: (B,) atoms so far."""

    def __init__(self, exact: torch.Tensor, owed: torch.Tensor, most: int, asked: Sequence[Asked | None]):
        self.exact, self.owed = exact, owed.clone()
        self.placed = torch.zeros_like(exact)
        self.most = torch.where(exact > 0, exact, most)
        #: Rows that must be looked at one by one.
        self.hard = {i: Budget(a, int(exact[i]), int(owed[i]), most) for i, a in enumerate(asked) if a is not None}

    def least(self) -> torch.Tensor:
        """(B,) atoms of the smallest crystals that meet what is asked."""
        least = self.exact.clamp(min=1)
        for i, budget in self.hard.items():
            least[i] = budget.least
        return least

    def keep(self, rows: int) -> None:
        self.exact, self.owed, self.placed = self.exact[:rows], self.owed[:rows], self.placed[:rows]
        self.most = self.most[:rows]
        self.hard = {i: budget for i, budget in self.hard.items() if i < rows}

    def make_room(self, rows: torch.Tensor, volume: torch.Tensor) -> None:
        """The volumes (R,) Å³ of the cells of these rows (indices) are known."""
        room = torch.minimum(self.most[rows], (volume / MIN_VOLUME).long())
        self.most[rows] = torch.where(self.exact[rows] > 0, self.exact[rows], room)
        for budget, most in self._hard(rows, room):
            budget.make_room(most)

    def take(self, rows: torch.Tensor, z: torch.Tensor) -> None:
        """An atom of element z (R,) more in these rows."""
        self.placed[rows] += 1
        self.owed[rows] = self.owed[rows].masked_fill(self.owed[rows] == z, 0)
        for budget, element in self._hard(rows, z):
            budget.take(element)

    def allowed(self, rows: torch.Tensor) -> torch.Tensor:
        """(R, 119) bool: elements of which the next atom may be."""
        found = self.elements((self.most - self.placed)[rows], self.owed[rows])
        for at, (budget, _) in zip(self._places(rows), self._hard(rows, rows), strict=True):
            found[at] = False
            found[at, list(budget.allowed())] = True
        return found

    @staticmethod
    def elements(left: torch.Tensor, owed: torch.Tensor) -> torch.Tensor:
        """(R, 119) bool: elements of the next of `left` (R,) atoms, one of which must be of element `owed` (R,)."""
        every = torch.arange(MAX_Z + 1, device=left.device)
        found = (every > 0) & (left > 0)[:, None]
        return found & ((every == owed[:, None]) | ((owed == 0) | (left > 1))[:, None])

    def after_atom(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(R,) bool each: whether another atom may follow, and whether the crystal may end."""
        placed, exact = self.placed[rows], self.exact[rows]
        more = placed < self.most[rows]
        end = (self.owed[rows] == 0) & ((exact == 0) | (placed == exact))
        for at, (budget, _) in zip(self._places(rows), self._hard(rows, rows), strict=True):
            more[at], end[at] = bool(budget.allowed()), budget.may_end
        return more, end

    def _places(self, rows: torch.Tensor) -> list[int]:
        return [at for at, row in enumerate(rows.tolist()) if row in self.hard] if self.hard else []

    def _hard(self, rows: torch.Tensor, values: torch.Tensor) -> list[tuple[Budget, int]]:
        """The budgets of those of these rows that have one, each with its value."""
        if not self.hard:
            return []
        return [(self.hard[row], value) for row, value in zip(rows.tolist(), values.tolist(), strict=True)
                if row in self.hard]
