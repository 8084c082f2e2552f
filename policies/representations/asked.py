"""What the grammar can be made to keep to while sampling, without any training: formula, elements, size, charge."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from math import gcd
from typing import Any

from pymatgen.core import Composition, Element

from rlgen.conditions import HARD
from rlgen.types import Condition, UserError


@dataclass(frozen=True)
class Asked:
    """The hard conditions of one sequence. formula: ((Z, count), ...) reduced, or None. elements: allowed, or None."""

    formula: tuple[tuple[int, int], ...] | None = None
    elements: frozenset[int] | None = None
    max_atoms: int | None = None
    neutral: bool = False

    @classmethod
    def of(cls, condition: Condition) -> Asked | None:
        """What a condition asks of the grammar alone; None for nothing. Raises UserError for nonsense."""
        if all(condition.get(key) is None or condition.get(key) is False for key in HARD):  # 0 is a mistake to tell
            return None
        formula, elements = condition.get("formula"), condition.get("elements")
        counts = _formula(formula) if formula is not None else None
        allowed = _elements(elements) if elements is not None else None
        if counts and allowed is not None and not {z for z, _ in counts} <= allowed:
            raise UserError(f"formula={formula} has elements that elements={elements} does not allow")
        maximum = condition.get("max_atoms")
        if maximum is not None and int(maximum) < 1:
            raise UserError(f"max_atoms={maximum} must be at least 1")
        asked = cls(counts, allowed, None if maximum is None else int(maximum), bool(condition.get("neutral")))
        asked.check(condition)
        return asked

    def check(self, condition: Condition) -> None:
        """Raise UserError where the conditions contradict each other."""
        n, element = int(condition.get("n_atoms", 0)), condition.get("element")
        if self.max_atoms is not None and n > self.max_atoms:
            raise UserError(f"n_atoms={n} is over max_atoms={self.max_atoms}")
        if element is not None and self.elements is not None and Element(element).Z not in self.elements:
            raise UserError(f"element={element} is not among the elements allowed")
        if self.formula is None:
            return
        unit = sum(count for _, count in self.formula)
        if element is not None and Element(element).Z not in dict(self.formula):
            raise UserError(f"element={element} is not in the formula asked for")
        if n % unit or (self.max_atoms is not None and self.max_atoms < unit):
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


def _elements(value: Any) -> frozenset[int]:
    symbols = value.replace(",", "-").split("-") if isinstance(value, str) else list(value)
    bad = [symbol for symbol in symbols if not Element.is_valid_symbol(str(symbol))]
    if bad or not symbols:
        raise UserError(f"elements={value!r}: {bad or 'nothing'} is no element; write them as Li-Fe-O")
    return frozenset(Element(str(symbol)).Z for symbol in symbols)
