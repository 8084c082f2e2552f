"""Condition match: is the crystal as it was asked for, in every property that its prompt names?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from pymatgen.core import Composition, Structure

from rewards.guards import refuse
from rlgen.conditions import ALWAYS, CATEGORIES, NUMBER_OF, Category, Transform, known, read, symbols
from rlgen.energies import must_be_known
from rlgen.predictors import Predictor, predictor_of
from rlgen.properties import PROPERTIES
from rlgen.protostructure import MIRRORED
from rlgen.types import Condition, UserError

Combine = Literal["mean", "geometric"]
#: Tolerance and width where nothing else says them, as shares of the range of the property's scale.
SHARES = (0.01, 0.1)


def _has(structure: Structure) -> set[str]:
    return {element.symbol for element in structure.composition.element_composition}


#: Whether a crystal's composition is as asked, by the condition's key.
COMPOSITION: dict[str, Callable[[Structure, Any], bool]] = {
    "element": lambda s, asked: set(symbols(asked)) <= _has(s),
    "elements": lambda s, asked: _has(s) <= set(symbols(asked)),
    "chemical_system": lambda s, asked: _has(s) == set(symbols(asked)),
    "formula": lambda s, asked: Composition(str(asked)).reduced_formula
    == s.composition.element_composition.reduced_formula,
}
#: What the grammar alone sees to: it holds for every crystal that comes here.
GRAMMAR = ("max_atoms", "neutral")
#: What atoms too close or too far apart cannot feign. A density they can, and to a model's gap anything may happen.
HONEST = ("n_atoms", "n_elements", "space_group", "crystal_system", "hhi_production", "hhi_reserve")


@dataclass(frozen=True)
class ConditionMatch:
    """The mean over what is asked of a crystal of how well it is met, each between 0 and 1. Asked nothing, it is 1.

    A number is met, 1, within `tolerance` of what is asked, and from there on halves with every `width`: there is a
    slope towards the target however far it is. Both are in the property's unit, by its name; their defaults are in
    `rlgen.properties`, or, for a property with a scale, a hundredth and a tenth of its range. Space group, crystal
    system, stability, formula and elements are met or not (1 or 0); the space group of a mirror image counts as the one
    asked for.

    properties: what counts of what is asked; null: all, but what prompts always tell (space group, number of atoms,
    element), which the grammar sees to or `off_prompt` punishes, only where nothing else is asked. combine: "mean", or
    "geometric", which wants all of them at once. functions: what gives a property, as "my.module:function" (from a
    Structure to a number), besides what `rlgen.predictors` has; of a category it gives the place of the name, of
    stability the energy. scales: of properties as `rlgen.conditions` reads them (kind, low, high; threshold): on a
    logarithmic scale distances are those of the logarithms, and tolerance and width hold above what is asked. energy,
    hull: of e_above_hull and stability. closest, vacuum: of the guards, as of the stability reward.

    Where a property cannot be had, the crystal has no match and has failed; so has one whose geometry the guards
    refuse, if it was asked for a number that such a geometry can feign.
    """

    properties: Sequence[str] | None = None
    combine: Combine = "mean"
    tolerance: Mapping[str, float] = field(default_factory=dict)
    width: Mapping[str, float] = field(default_factory=dict)
    functions: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[str, Any] = field(default_factory=dict)
    energy: str = "auto"
    hull: str | None = None
    closest: float = 0.6
    vacuum: float = 3.5

    name: ClassVar[str] = "condition"
    unit: ClassVar[str] = ""
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.combine not in get_args(Combine):
            raise UserError(f"condition combine={self.combine}: known are {', '.join(get_args(Combine))}")
        for what, given, least in (("tolerance", self.tolerance, 0.0), ("width", self.width, 1e-12)):
            wrong = [name for name, value in given.items() if not float(value) >= least]
            if wrong:
                raise UserError(f"condition {what}.{wrong[0]}={given[wrong[0]]}: must be "
                                f"{'at least' if least == 0 else 'above'} 0, in the property's unit")
        read(self.scales)
        must_be_known(self.energy)

    def warm_up(self) -> None:
        """Load the models of the properties that are named in the settings."""
        for name in self.properties or ():
            if name not in COMPOSITION:
                self._predictor(name)

    def measure(self, structures: Sequence[Structure], conditions: Sequence[Condition]) -> np.ndarray:
        """How well each crystal (B,) is as asked, NaN where a property could not be had."""
        return self.measure_with_columns(structures, conditions)[0]

    def measure_with_columns(
        self, structures: Sequence[Structure], conditions: Sequence[Condition]
    ) -> tuple[np.ndarray, list[str], dict[str, np.ndarray]]:
        """Matches (B,), why one is NaN, and per property `match_<name>` (0 to 1) and, of what has a value,
        `measured_<name>` (B,), NaN for crystals that were not asked for it."""
        count = len(structures)
        reasons: list[str] = [""] * count
        columns: dict[str, np.ndarray] = {}
        for name in sorted({name for condition in conditions for name in condition if self._counts(name)}):
            rows = [i for i in range(count) if known(conditions[i].get(name))]
            asked = [conditions[i][name] for i in rows]
            some = [structures[i] for i in rows]
            match = columns[f"match_{name}"] = np.full(count, np.nan)
            if name in COMPOSITION:
                match[rows] = [COMPOSITION[name](s, a) for s, a in zip(some, asked, strict=True)]
                continue
            values, why = self._values(name, some)
            columns[f"measured_{name}"] = np.full(count, np.nan)
            columns[f"measured_{name}"][rows] = values
            match[rows] = [self.match(name, float(v), a) for v, a in zip(values, asked, strict=True)]
            for i, text in zip(rows, why, strict=True):
                if text:
                    reasons[i] = f"{reasons[i]}, {name}: {text}".removeprefix(", ")
        matches = {column.removeprefix("match_"): match for column, match in columns.items()
                   if column.startswith("match_")}
        others = [match for name, match in matches.items() if name not in ALWAYS]
        if self.properties is None and others:  # what prompts always tell would only drown them
            more = ~np.isnan(others).all(0)
            matches |= {name: np.where(more, np.nan, matches[name]) for name in ALWAYS if name in matches}
        raw = self._combined(np.array(list(matches.values())).reshape(len(matches), count).T)
        raw[[bool(reason) for reason in reasons]] = np.nan
        return raw, reasons, columns

    def _values(self, name: str, structures: Sequence[Structure]) -> tuple[np.ndarray, list[str]]:
        """A property of crystals (B,), and why one has none: what the guards refuse is not measured."""
        values = np.full(len(structures), np.nan)
        why = ["" if name in HONEST else refuse(s, self.closest, self.vacuum) for s in structures]
        sound = [i for i, reason in enumerate(why) if not reason]
        values[sound], problems = self._predictor(name).predict([structures[i] for i in sound])
        for i, problem in zip(sound, problems, strict=True):
            why[i] = problem
        return values, why

    def transform(self, raw: np.ndarray) -> np.ndarray:
        return np.asarray(raw, dtype=float)

    def match(self, name: str, value: float, asked: Any) -> float:
        """How well one value meets what is asked, 0 to 1; NaN for NaN."""
        if math.isnan(value):
            return math.nan
        if name == "space_group":
            return float(MIRRORED.get(int(value), int(value)) == MIRRORED.get(int(asked), int(asked)))
        scale = read(self.scales).get(name, CATEGORIES.get(name))
        if isinstance(scale, Category):
            return float(int(scale.places(value)) == (scale.index(asked) if isinstance(asked, str) else int(asked)))
        return self._met(name, value, float(asked), scale)

    def _met(self, name: str, value: float, target: float, scale: Transform | None) -> float:
        """UserError: nothing says over which width a match in this property halves."""
        if name in PROPERTIES:
            tolerance, width = PROPERTIES[name].tolerance, PROPERTIES[name].width
        elif scale is not None:
            tolerance, width = (float(scale.unscaled(scale.scaled(target) + share)) - target for share in SHARES)
        else:
            tolerance, width = 0.0, 0.0
        tolerance, width = self.tolerance.get(name, tolerance), self.width.get(name, width)
        if width == 0:
            raise UserError(f"condition: over which width does a match in {name} halve? Give it in its unit as "
                            f"reward.condition.width.{name}=…")
        points = np.array([value, target, target + tolerance, target + tolerance + width])
        value, target, end, half = points if scale is None else scale.scaled(points)
        return 2.0 ** -(max(abs(value - target) - (end - target), 0.0) / max(half - end, 1e-12))

    def _counts(self, name: str) -> bool:
        return name not in GRAMMAR and (self.properties is None or name in self.properties)

    def _predictor(self, name: str) -> Predictor:
        try:
            return predictor_of(NUMBER_OF.get(name, name), function=self.functions.get(name), energy=self.energy,
                                hull=self.hull)
        except UserError as error:
            raise UserError(f"reward condition: {error}, as reward.condition.functions.{name}=my.module:function"
                            if name not in self.functions else f"reward condition: {error}") from error

    def _combined(self, matches: np.ndarray) -> np.ndarray:
        """One number (B,) of matches (B, P), whose NaN are properties that a crystal was not asked for."""
        asked = ~np.isnan(matches)
        count = np.maximum(asked.sum(1), 1)
        if self.combine == "geometric":
            found = np.where(asked, matches, 1.0).prod(1) ** (1 / count)
        else:
            found = np.where(asked, matches, 0.0).sum(1) / count
        return np.where(asked.any(1), found, 1.0)
