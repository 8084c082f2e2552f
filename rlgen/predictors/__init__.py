"""What gives a crystal's value of a property by name: the structure itself, a model, or a function of the user's.

A model is loaded once per process and must reproduce known values before it labels or rewards anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from pymatgen.core import Structure

from rlgen.properties import PROPERTIES, measure
from rlgen.types import UserError


class Predictor(Protocol):
    """source: who says so, in words, for tables and reports."""

    source: str

    def predict(self, structures: Sequence[Structure]) -> tuple[np.ndarray, list[str]]:
        """Values (B,) in the property's unit, and for each crystal why it has none (NaN), "" where it has one."""
        ...


#: Properties that a model predicts: "module:class"; its `load()` gives a loaded and checked predictor.
MODELS: dict[str, str] = {"band_gap": "rlgen.predictors.megnet:BandGap"}


def predictor_of(name: str, *, function: str | None = None, energy: str = "auto", hull: str | None = None) -> Predictor:
    """The predictor of a property; models, potentials and hulls are loaded once per process.

    function: the user's own, as "my.module:function", from a Structure to a number; it comes first. energy, hull: of
    e_above_hull. UserError: nothing here gives that property.
    """
    if function is not None:
        return OneByOne(user_function(function), function)
    if name == "e_above_hull":
        return AboveHull(energy, hull)
    if name in MODELS:
        return _model(name)
    if name in PROPERTIES and PROPERTIES[name].measure:
        return OneByOne(lambda structure: measure(name, structure), "structure")
    can = ", ".join([n for n, p in PROPERTIES.items() if p.measure] + ["e_above_hull", *MODELS])
    raise UserError(f"nothing here gives the property {name!r} of a new crystal: name a function of your own that does "
                    f"(from a pymatgen Structure to a number); known are {can}")


@lru_cache(maxsize=8)
def _model(name: str) -> Predictor:
    module, _, cls = MODELS[name].partition(":")
    model: Predictor = getattr(import_module(module), cls).load()
    return model


def user_function(dotted: str) -> Callable[[Structure], float]:
    """The function that "my.module:function" names. UserError: there is none."""
    module, _, attribute = dotted.partition(":")
    try:
        function: Any = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{dotted!r} cannot be imported as my.module:function: {error}") from error
    if not callable(function):
        raise UserError(f"{dotted!r} is no function")
    return function


@dataclass
class OneByOne:
    """A function of one structure; what it raises is not caught here."""

    function: Callable[[Structure], float]
    source: str

    def predict(self, structures: Sequence[Structure]) -> tuple[np.ndarray, list[str]]:
        values = np.array([float(self.function(structure)) for structure in structures])
        return values, ["" if np.isfinite(value) else "it has none" for value in values]


class AboveHull:
    """Energies above the hull (eV/atom) of crystals as they are, by a potential and a hull of its scale."""

    def __init__(self, energy: str, hull: str | None):
        from rlgen.energies import load_potential
        from rlgen.hull import Hull

        self.potential = load_potential(energy)
        self.hull = Hull.load(self.potential.scale, hull)
        self.source = f"{self.potential.scale}, hull of {self.hull}"

    def predict(self, structures: Sequence[Structure]) -> tuple[np.ndarray, list[str]]:
        from rlgen.hull import HullError

        values, reasons = np.full(len(structures), np.nan), [""] * len(structures)
        points = self.potential.evaluate(structures, forces=False)
        for i, (structure, point) in enumerate(zip(structures, points, strict=True)):
            try:
                reasons[i] = point.error or ""
                if not reasons[i]:
                    values[i] = self.hull.e_above_hull(structure.composition, point.energy, scale=self.potential.scale)
            except HullError as error:
                reasons[i] = str(error)
        return values, reasons
