"""What the grammar can be made to keep to while sampling, without any training: formula, elements, size, charge."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from math import gcd
from typing import Any

from pymatgen.core import Composition, Element

from rlgen.conditions import HARD, symbols
from rlgen.types import Condition, UserError


@dataclass(frozen=True)
class Asked:
    """The hard conditions of one sequence. formula: ((Z, count), ...) reduced, or None. elements: allowed, or None.

    required: elements that must all be there.
    """

    formula: tuple[tuple[int, int], ...] | None = None
    elements: frozenset[int] | None = None
    required: frozenset[int] = frozenset()
    max_atoms: int | None = None
    neutral: bool = False

    @classmethod
    def of(cls, condition: Condition) -> Asked | None:
        """What a condition asks of the grammar alone; None for nothing. Raises UserError for nonsense."""
        if len(symbols(condition.get("element"))) < 2 and all(
                condition.get(key) is None or condition.get(key) is False for key in HARD):  # 0 is a mistake to tell
            return None
        given = {key: condition[key] for key in ("formula", "chemical_system", "elements", "element")
                 if condition.get(key) is not None}
        formula = _formula(given["formula"]) if "formula" in given else None
        sets = {key: frozenset(z for z, _ in formula) if formula and key == "formula" else _elements(key, value)
                for key, value in given.items()}
        for key, other in product(sets, sets):
            if key != "elements" and other != "element" and not sets[key] <= sets[other]:
                raise UserError(f"{key}={given[key]} has elements that {other}={given[other]} does not allow")
        none: frozenset[int] = frozenset()
        maximum = condition.get("max_atoms")
        asked = cls(formula, sets.get("chemical_system", sets.get("elements")),
                    sets.get("chemical_system", none) | sets.get("element", none),
                    None if maximum is None else int(maximum), bool(condition.get("neutral")))
        asked._check(int(condition.get("n_atoms") or 0))
        return asked

    def _check(self, n: int) -> None:
        """Raise UserError where numbers of atoms contradict each other, or the elements."""
        most = self.max_atoms
        if most is not None and most < 1:
            raise UserError(f"max_atoms={most} must be at least 1")
        if most is not None and n > most:
            raise UserError(f"n_atoms={n} is over max_atoms={most}")
        if 0 < (fewest := n or most or 0) < len(self.required):
            raise UserError(f"{'n_atoms' if n else 'max_atoms'}={fewest} is too few for {len(self.required)} elements")
        unit = sum(count for _, count in self.formula or ())
        if unit and (n % unit or (most is not None and most < unit)):
            raise UserError(f"no whole number of formula units of {unit} atoms makes the number of atoms asked for")

    def budgets(self, most: int, exact: int = 0) -> list[dict[int, int]]:
        """The compositions of primitive cells that have the formula: at most `most` atoms, or exactly `exact`.

        UserError if there is none, as when all must be neutral and none can be.
        """
        assert self.formula is not None
        unit = sum(count for _, count in self.formula)
        most = min(most, self.max_atoms or most)
        multiples = [k for k in range(1, most // unit + 1) if not exact or k * unit == exact]
        found = [{z: k * count for z, count in self.formula} for k in multiples]
        found = [budget for budget in found if not self.neutral or can_be_neutral(budget)]
        if not found:
            raise UserError(f"no crystal of {exact or f'at most {most}'} atoms has the formula asked for"
                            + (" and can be neutral by common oxidation states" if self.neutral else ""))
        return found


def owing(element: int, asked: Asked | None) -> frozenset[int]:
    """The elements that a crystal still owes at its start. element: that of the prompt, 0 for none."""
    return (asked.required if asked else frozenset()) | ({element} - {0})


@dataclass(frozen=True)
class Charges:
    """A set of total charges: bit i of `bits` stands for the charge i - `offset`."""

    bits: int
    offset: int

    @classmethod
    def none(cls) -> Charges:
        return cls(1, 0)

    @classmethod
    @cache
    def of(cls, z: int) -> Charges:
        """The common oxidation states of one atom of an element; 0 where none is known."""
        states = Element.from_Z(z).common_oxidation_states or (0,)
        lowest = min(states)
        return cls(sum(1 << (int(q) - int(lowest)) for q in states), -int(lowest))

    def plus(self, other: Charges) -> Charges:
        """All sums of a charge of the one and a charge of the other."""
        few, many = sorted((self, other), key=lambda c: c.bits.bit_count())
        bits, shift, rest = 0, 0, few.bits
        while rest:
            if rest & 1:
                bits |= many.bits << shift
            rest, shift = rest >> 1, shift + 1
        return Charges(bits, self.offset + other.offset)

    def times(self, count: int) -> Charges:
        """The sums of `count` atoms, each with a charge of its own."""
        total = Charges.none()
        for _ in range(count):
            total = total.plus(self)
        return total

    def __or__(self, other: Charges) -> Charges:
        low, high = sorted((self, other), key=lambda c: c.offset)
        return Charges(high.bits | low.bits << (high.offset - low.offset), high.offset)

    @cached_property
    def closes(self) -> bool:
        """Whether zero is among them."""
        return bool(self.bits >> self.offset & 1) if self.offset >= 0 else False


def can_be_neutral(budget: dict[int, int]) -> bool:
    """Whether some choice of common oxidation states, one an atom, adds up to zero."""
    total = Charges.none()
    for z, count in budget.items():
        total = total.plus(Charges.of(z).times(count))
    return total.closes


def _formula(text: Any) -> tuple[tuple[int, int], ...]:
    try:
        amounts = {Element(symbol).Z: n for symbol, n in Composition(str(text)).get_el_amt_dict().items()}
    except (ValueError, KeyError) as error:
        raise UserError(f"formula={text!r} is no formula: {error}") from None
    if not amounts or any(amount != int(amount) for amount in amounts.values()):
        raise UserError(f"formula={text!r} must have whole numbers of atoms")
    divisor = gcd(*(int(amount) for amount in amounts.values()))
    return tuple(sorted((z, int(amount) // divisor) for z, amount in amounts.items()))


def _elements(key: str, value: Any) -> frozenset[int]:
    bad = [symbol for symbol in symbols(value) if not Element.is_valid_symbol(symbol)]
    if bad or not symbols(value):
        raise UserError(f"{key}={value!r}: {bad or 'nothing'} is no element; write them as Li-Fe-O")
    return frozenset(Element(symbol).Z for symbol in symbols(value))
