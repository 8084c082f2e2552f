"""The species of the `atoms` representation: what tokens mean, and which may follow where formula or charge matter."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache, partial, reduce
from itertools import product
from math import prod
from operator import or_
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pymatgen.core import Element

from policies.representations.asked import Asked, Charges, owing
from policies.representations.base import MAX_Z
from rlgen.types import UserError

#: Assignments of oxidation states to elements that are tried for one crystal; beyond, its states stay unknown.
MOST_GUESSES = 20_000


@dataclass(frozen=True)
class Species:
    """The tokens of a block. z: atomic number of each, 0 for none. states: oxidation states, 0 for unknown.

    charges: the charges that an atom so written can have where the crystal must be neutral, None where it cannot.
    """

    names: tuple[str, ...]
    z: tuple[int, ...]
    states: tuple[int, ...]
    charges: tuple[Charges | None, ...] = field(repr=False)

    @classmethod
    @cache
    def elements(cls) -> Species:
        """One token an element, after one for none: those of the prompt. An atom has any common state of it."""
        z = range(MAX_Z + 1)
        return cls(("element?", *(Element.from_Z(i).symbol for i in z[1:])), tuple(z), (0,) * len(z),
                   (None, *(Charges.of(i) for i in z[1:])))

    @classmethod
    @cache
    def charged(cls) -> Species:
        """A token for every known oxidation state of every element, and one for unknown: the frozen table.

        Where charges count, unknown stands for none with elements that have no common state, and is not to be had
        with others.
        """
        table = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
        rows = [(symbol, q) for symbol, states in table.items() for q in sorted([0, *states])]
        inert = {z for z in range(1, MAX_Z + 1) if Charges.of(z) == Charges.none()}
        numbers = tuple(Element(symbol).Z for symbol, _ in rows)
        charges = tuple(Charges(1, -q) if q or z in inert else None for z, (_, q) in zip(numbers, rows, strict=True))
        return cls(tuple(f"{symbol}{q:+d}" if q else f"{symbol}?" for symbol, q in rows), numbers,
                   tuple(q for _, q in rows), charges)

    @cached_property
    def _places(self) -> dict[tuple[int, int], int]:
        return {key: i for i, key in enumerate(zip(self.z, self.states, strict=True))}

    def write(self, numbers: np.ndarray) -> np.ndarray:
        """(N,) the places in the block of a crystal's atoms (atomic numbers); where it matters, with guessed states."""
        states: dict[int, int] = {}
        if any(self.states):
            kinds, counts = np.unique(numbers, return_counts=True)
            counts = counts // np.gcd.reduce(counts)
            states = guess_states(tuple(zip(kinds.tolist(), counts.tolist(), strict=True)))
        if any(key not in self._places for key in states.items()):
            states = {}  # not in the frozen table: unknown, as where nothing is found
        return np.array([self._places[z, states.get(z, 0)] for z in numbers.tolist()])


@cache
def guess_states(formula: tuple[tuple[int, int], ...]) -> dict[int, int]:
    """An oxidation state for each atomic number of a reduced formula ((Z, count), ...); empty where none is found.

    One state an element, common ones before those known from crystals, that add up to zero; anions are more
    electronegative than cations; of several such choices the one with the smallest charges.
    """
    counts = {Element.from_Z(z): n for z, n in formula}
    for known in ("common_oxidation_states", "icsd_oxidation_states"):
        choices = [[int(q) for q in getattr(element, known)] or [0] for element in counts]
        if prod(map(len, choices)) > MOST_GUESSES:
            continue
        fitting = [states for states in product(*choices) if _sensible(counts, states)]
        if fitting:
            smallest = min(fitting, key=partial(_size, counts))
            return {element.Z: q for element, q in zip(counts, smallest, strict=True)}
    return {}


def _size(counts: dict[Element, int], states: Sequence[int]) -> int:
    return sum(n * abs(q) for n, q in zip(counts.values(), states, strict=True))


def _sensible(counts: dict[Element, int], states: Sequence[int]) -> bool:
    if sum(n * q for n, q in zip(counts.values(), states, strict=True)) or not any(states):
        return False
    cations = [element.X for element, q in zip(counts, states, strict=True) if q > 0]
    anions = [element.X for element, q in zip(counts, states, strict=True) if q < 0]
    return max(cations) <= min(anions)


class Progress(NamedTuple):
    """One sequence so far. left: what remains of each composition ((Z, count), ...) that has the formula, None without
    one. n: atoms. last: the last one's atomic number, 0 for none. owed: the atomic numbers still to come. charge: what
    the atoms can add up to, none where it does not matter. most: the largest number of atoms.
    """

    left: tuple[tuple[tuple[int, int], ...], ...] | None
    n: int
    last: int
    owed: frozenset[int]
    charge: Charges
    most: int


class Composer:
    """Which species may come next, so that all comes out as asked: from each, the end can be reached.

    exact: the number of atoms, 0 for any. order: +1 for rising atomic numbers, -1
    for falling ones, 0 for any.
    """

    def __init__(self, species: Species, asked: Asked, exact: int, order: int):
        self.species, self.asked, self.exact, self.order = species, asked, exact, order
        wanted = {z for z, _ in asked.formula} if asked.formula else asked.elements
        self.pool = [i for i, z in enumerate(species.z) if z and (wanted is None or z in wanted)
                     and not (asked.neutral and species.charges[i] is None)]
        self.charges = [charge if charge and asked.neutral else Charges.none() for charge in species.charges]
        self.next = lru_cache(1 << 14)(self._next)
        self._closing, self._charges = cache(self._find_closing), cache(self._find_charges)

    @classmethod
    @lru_cache(1024)
    def of(cls, charged: bool, asked: Asked, exact: int, order: int) -> Composer:
        """Shared by all rows that ask for the same, so that they share what was found."""
        return cls(Species.charged() if charged else Species.elements(), asked, exact, order)

    def start(self, most: int, owed: int) -> tuple[Progress, int]:
        """The beginning, and the least number of atoms. Raises UserError where no composition is as asked."""
        begin = Progress(None, 0, 0, owing(owed, self.asked), Charges.none(), most)
        if self.asked.formula is not None:
            budgets = tuple(tuple(budget.items()) for budget in self.asked.budgets(most, self.exact))
            begin = self._possible(begin._replace(left=budgets))
            sizes = [sum(count for _, count in budget) for budget in begin.left or ()]
        else:
            sizes = [n for n in range(self.exact or 1, (self.exact or most) + 1)
                     if self._balances(begin.charge, 0, begin.owed, n, True)]
        if not sizes:
            raise UserError(f"no {'neutral ' if self.asked.neutral else ''}crystal of {self.exact or f'up to {most}'} "
                            "atoms has the formula or the elements asked for")
        return begin, min(sizes)

    def limit(self, progress: Progress, most: int) -> Progress:
        """No more than so many atoms."""
        left = progress.left and tuple(b for b in progress.left if sum(count for _, count in b) <= most - progress.n)
        return progress._replace(most=most, left=left)

    def add(self, progress: Progress, place: int) -> Progress:
        """An atom of the species at this place of the block came."""
        z, left = self.species.z[place], progress.left
        if left is not None:
            left = tuple(tuple((y, count - (y == z)) for y, count in budget) for budget in left
                         if any(y == z and count for y, count in budget) and not self._skips(budget, z))
        return self._possible(Progress(left, progress.n + 1, z, progress.owed - {z},
                                       progress.charge.plus(self.charges[place]), progress.most))

    def _skips(self, budget: tuple[tuple[int, int], ...], z: int) -> bool:
        """Whether atoms are left that the order does not allow after z."""
        return any(count and (y - z) * self.order < 0 for y, count in budget)

    def _possible(self, progress: Progress) -> Progress:
        """Without the compositions whose charge cannot be balanced."""
        if progress.left is None or not self.asked.neutral:
            return progress
        left = tuple(b for b in progress.left if _meet(progress.charge, _balancing(self._rest(b))))
        return progress._replace(left=left)

    def _rest(self, budget: tuple[tuple[int, int], ...]) -> tuple[tuple[Charges, int], ...]:
        return tuple((self._charges(z, z), count) for z, count in budget if count)

    def _next(self, progress: Progress) -> tuple[tuple[int, ...], bool]:
        """Places in the block of the species that may come next, and whether the crystal may end here."""
        places = [i for i in self.pool if (self.species.z[i] - progress.last) * self.order >= 0 or not progress.last]
        if progress.left is not None:
            return tuple(i for i in places if self.add(progress, i).left), self._ends(progress)
        return tuple(self._balanced(progress, places)), self._ends(progress)

    def _ends(self, progress: Progress) -> bool:
        if not progress.charge.closes:
            return False
        if progress.left is not None:
            return any(not any(count for _, count in budget) for budget in progress.left)
        return not progress.owed and progress.n > 0 and self.exact in (0, progress.n)

    def _balanced(self, progress: Progress, places: Sequence[int]) -> Iterator[int]:
        """Those of the places after which all that is owed can still come, and the charge be brought to zero."""
        more = (self.exact or progress.most) - progress.n - 1
        found: dict[tuple[Charges, int], bool] = {}
        for i in places:
            z, charge = self.species.z[i], self.charges[i]
            key = charge, z if self.order or z in progress.owed else 0
            if key not in found:
                found[key] = self._balances(progress.charge.plus(charge), z, progress.owed - {z}, more,
                                            bool(self.exact))
            if found[key]:
                yield i

    def _balances(self, charge: Charges, last: int, owed: frozenset[int], more: int, exactly: bool) -> bool:
        """Whether `more` atoms (or up to so many) can bring the charge to zero, the owed elements among them."""
        more -= len(owed)
        if last and any((z - last) * self.order < 0 for z in owed):
            return False
        for z in owed:
            charge = charge.plus(self._charges(z, z))
        return more >= 0 and _meet(charge, self._closing(last if self.order else 0, more, exactly))

    def _find_closing(self, last: int, more: int, exactly: bool) -> Charges:
        """The charges that `more` atoms after one of element `last`, or up to so many, can balance."""
        low, high = (last, MAX_Z) if self.order >= 0 else (1, last or MAX_Z)
        one = self._charges(low, high)
        return _balancing(((one if exactly else one | Charges.none(), more),))

    def _find_charges(self, low: int, high: int) -> Charges:
        """What one atom of the elements from `low` to `high` can have."""
        return reduce(or_, [self.charges[i] for i in self.pool if low <= self.species.z[i] <= high])


@cache
def _times(charge: Charges, count: int) -> Charges:
    """The sums of `count` atoms, by halves: `Charges.times` takes a step an atom."""
    if count <= 1:
        return charge if count else Charges.none()
    return _times(charge, count // 2).plus(_times(charge, count - count // 2))


@cache
def _balancing(atoms: tuple[tuple[Charges, int], ...]) -> Charges:
    """The charges that so many atoms of each kind can bring to zero: the opposites of their sums."""
    total = reduce(Charges.plus, (_times(charge, count) for charge, count in atoms), Charges.none())
    return Charges(int(bin(total.bits)[:1:-1], 2), total.bits.bit_length() - 1 - total.offset)


def _meet(one: Charges, other: Charges) -> bool:
    """Whether two sets share a charge."""
    shift = other.offset - one.offset
    return bool(one.bits << shift & other.bits if shift >= 0 else other.bits << -shift & one.bits)
