"""How properties are asked for: one transform each, the same in prompts, distances and rewards, kept in checkpoints.

A numeric property is told to the policy as one of `bins` tokens that divide its range evenly, on a linear or a
logarithmic scale. The outer bins are open: whatever lies beyond the range belongs to them.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from rlgen.types import UserError

#: Those of the International Tables: groups with hexagonal axes are trigonal up to 167.
CRYSTAL_SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
#: The last space group of each.
_LAST_GROUP = (2, 15, 74, 142, 167, 194, 230)
#: Of the values that a transform is fitted to, what lies outside these percentiles is left to the open bins.
PERCENTILES = (0.1, 99.9)
#: Positive values that span more than this factor are written on a logarithmic scale.
LOG_SPAN = 1e3
BINS = 64
#: What prompts say of every crystal.
ALWAYS = ("space_group", "n_atoms", "element")
#: What only the grammar sees to. formula: "NaCl", any whole multiple of it in the primitive cell (n_atoms settles
#: which). chemical_system: just these elements, all of them, "Li-Fe-O". elements: the only ones allowed. max_atoms: in
#: the primitive cell. neutral: some choice of common oxidation states, one an atom, adds up to no charge. So it does to
#: several elements, of which prompts name the first.
HARD = ("formula", "chemical_system", "elements", "max_atoms", "neutral")


@dataclass(frozen=True)
class Transform:
    """A numeric property's scale. kind: "linear" or "log". low, high: the range, in the property's own unit."""

    kind: str
    low: float
    high: float
    bins: int = BINS

    KINDS: ClassVar[tuple[str, ...]] = ("linear", "log")

    def __post_init__(self) -> None:
        if self.kind not in self.KINDS:
            raise UserError(f"kind={self.kind!r} of a property; known: {', '.join(self.KINDS)}, category")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"low={self.low}, high={self.high} of a property: low must be less than high")
        if self.kind == "log" and self.low <= 0:
            raise UserError(f"low={self.low} of a property: a logarithmic scale begins above 0")
        if int(self.bins) != self.bins or self.bins < 2:
            raise UserError(f"bins={self.bins} of a property: must be a whole number of at least 2")

    @classmethod
    def fit(cls, values: Any, kind: str | None = None, bins: int = BINS, *, low: float | None = None,
            high: float | None = None) -> Transform:
        """The range of values (M,) but for their outermost `PERCENTILES`; NaN are no values.

        Without a kind it is logarithmic where all values are positive and span `LOG_SPAN`. A logarithmic range is
        that of the positive values. UserError where nothing is left, or all that is left is one value.
        """
        known = np.asarray(values, dtype=float).ravel()
        known = known[np.isfinite(known)]
        if kind == "log":
            known = known[known > 0]
        if not len(known):
            raise UserError(f"no {'positive ' if kind == 'log' else ''}values to fit a scale to")
        ends = np.percentile(known, PERCENTILES)
        if ends[0] == ends[1]:  # nearly all are equal, and the others count
            ends = np.array([known.min(), known.max()])
        if kind is None:
            kind = "log" if known.min() > 0 and ends[1] > LOG_SPAN * ends[0] else "linear"
        if ends[0] == ends[1] and (low is None or high is None):
            raise UserError(f"all {len(known)} values are {ends[0]:g}: there is nothing to ask for")
        return cls(kind, float(ends[0] if low is None else low), float(ends[1] if high is None else high), bins)

    def scaled(self, values: Any) -> np.ndarray:
        """0 at `low`, 1 at `high`, for values of any shape; beyond the range less or more, NaN for NaN.

        On a logarithmic scale all values below `low` are 0, those not positive included.
        """
        values = np.asarray(values, dtype=float)
        if self.kind == "linear":
            return (values - self.low) / (self.high - self.low)
        return np.log(np.maximum(values, self.low) / self.low) / math.log(self.high / self.low)

    def unscaled(self, scaled: Any) -> np.ndarray:
        """The inverse of `scaled`."""
        scaled = np.asarray(scaled, dtype=float)
        if self.kind == "linear":
            return self.low + scaled * (self.high - self.low)
        return self.low * (self.high / self.low) ** scaled

    def index(self, value: Any) -> int:
        """The bin of a value; the outer ones are open. UserError for what is no number."""
        try:
            scaled = float(self.scaled(float(value)))
        except (TypeError, ValueError):
            scaled = math.nan
        if math.isnan(scaled):
            raise UserError(f"{value!r} is no number")
        return int(min(max(scaled, 0.0) * self.bins, self.bins - 1))

    def value(self, index: int) -> float:
        """The middle of a bin."""
        return float(self.unscaled((index + 0.5) / self.bins))

    def token_names(self, name: str) -> list[str]:
        """One for each bin."""
        return [f"{name}[{i}]" for i in range(self.bins)]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Category:
    """A property that is one of a few names. threshold: the first of two stands for numbers below it."""

    names: tuple[str, ...]
    threshold: float | None = None

    def __post_init__(self) -> None:
        if len(set(self.names)) < 2 or len(set(self.names)) < len(self.names):
            raise UserError("a category needs two names or more, each once")
        if self.threshold is not None and (len(self.names) > 2 or not isinstance(self.threshold, int | float)
                                           or not math.isfinite(self.threshold)):
            raise UserError(f"threshold={self.threshold} must be a number, between two names")

    @property
    def bins(self) -> int:
        return len(self.names)

    def index(self, value: Any) -> int:
        """The place of a name. UserError lists the known ones."""
        if value not in self.names:
            raise UserError(f"{value!r} is not one of {', '.join(self.names)}")
        return self.names.index(value)

    def places(self, values: Any) -> np.ndarray:
        """The places of what was measured, of any shape, NaN for NaN; without a threshold they are what is measured."""
        values = np.asarray(values, dtype=float)
        return values if self.threshold is None else np.where(np.isnan(values), np.nan, values >= self.threshold)

    def token_names(self, name: str) -> list[str]:
        return list(self.names)

    def to_dict(self) -> dict[str, Any]:
        limit = {} if self.threshold is None else {"threshold": self.threshold}
        return {"kind": "category", "names": list(self.names)} | limit


SYSTEM = Category(CRYSTAL_SYSTEMS)
#: The properties that are one of a few names. Stability is high below so many eV/atom above the hull.
CATEGORIES = {"crystal_system": SYSTEM, "stability": Category(("high", "low"), 0.1)}
#: The number that a category with a threshold is measured as.
NUMBER_OF = {"stability": "e_above_hull"}


def crystal_system(space_group: int) -> int:
    """The place in `CRYSTAL_SYSTEMS` of a space group 1 to 230."""
    return bisect_left(_LAST_GROUP, space_group)


def groups_of(system: str) -> range:
    """The space groups of a crystal system."""
    at = SYSTEM.index(system)
    return range(_LAST_GROUP[at - 1] + 1 if at else 1, _LAST_GROUP[at] + 1)


def check_name(name: str) -> None:
    """UserError for what no property can be called."""
    if name in (*ALWAYS, *HARD):
        raise UserError(f"conditions: {name} can be asked of every policy; leave it out")
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise UserError(f"conditions: {name!r} is no name of letters, digits and _; rename the column")


def read(conditions: Mapping[str, Any]) -> dict[str, Transform | Category]:
    """Transforms by property, by name, from plain dicts as settings and checkpoints have them, in any order.

    UserError names the property.
    """
    found: dict[str, Transform | Category] = {}
    for name, given in sorted(conditions.items()):
        check_name(name)
        try:
            found[name] = _read(given)
        except (TypeError, UserError) as error:
            raise UserError(f"conditions.{name}: {error}") from error
    for name, category in CATEGORIES.items():
        scale = found.get(name, category)
        if not isinstance(scale, Category) or scale.names != category.names:
            raise UserError(f"conditions.{name}: must be the category of {', '.join(category.names)}")
    return found


def symbols(value: Any) -> list[str]:
    """Elements written as Li-Fe-O, Li,Fe,O or a list; none for None."""
    if value is None:
        return []
    return [str(symbol).strip() for symbol in (re.split("[-,]", value) if isinstance(value, str) else value)]


def known(value: Any) -> bool:
    """Whether a property is told at all: None and NaN are no values."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _read(given: Any) -> Transform | Category:
    if isinstance(given, Transform | Category):
        return given
    if not isinstance(given, Mapping):
        raise UserError(f"{given!r} must have kind, low, high and bins")
    fields = dict(given)
    if fields.get("kind") == "category":
        return Category(tuple(map(str, fields.get("names", ()))), fields.get("threshold"))
    return Transform(**fields)
