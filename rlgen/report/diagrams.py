"""Phase diagrams of the chemical systems that the best crystals belong to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pymatgen.core import Composition

if TYPE_CHECKING:
    from rlgen.hull import Hull

#: Diagrams on a page, at most.
LIMIT = 6
_ON_HULL = 1e-6  # eV/atom


def diagrams(samples: pd.DataFrame, chosen: Sequence[int], hull: Hull) -> list[dict[str, Any]]:
    """The systems of two or three elements among the chosen samples, with all their metastable, unique, novel ones."""
    systems = [str(samples["chemical_system"][i]) for i in chosen]
    found = [system for system in dict.fromkeys(systems) if system.count("-") in (1, 2)][:LIMIT]
    return [diagram(system, samples[samples["sun"] & (samples["chemical_system"] == system)], hull) for system in found]


def diagram(system: str, samples: pd.DataFrame, hull: Hull) -> dict[str, Any]:
    """Points with their `fractions` and formation `energy` (eV/atom), known ones and samples, and the hull's edges.

    Energies are from the elements' own crystals of the same hull.
    """
    symbols = tuple(sorted(system.split("-")))
    known = hull.system(symbols)
    pure = known.energies[: len(symbols)]
    formation = known.energies - known.fractions @ pure
    points = []
    for fractions, energy in zip(known.fractions, formation, strict=True):
        lowest = known.lowest(fractions) - float(fractions @ pure)
        points.append({"formula": _formula(symbols, fractions), "fractions": _rounded(fractions), "sample": None,
                       "energy": round(float(energy), 5), "stable": bool(energy - lowest < _ON_HULL)})  # fmt: skip
    stable = [i for i, point in enumerate(points) if point["stable"]]
    edges = _edges(known.fractions[stable], formation[stable])
    for i, row in samples.iterrows():
        amounts = Composition(row["formula"]).fractional_composition
        fractions = np.array([amounts[symbol] for symbol in symbols])
        energy = known.lowest(fractions) - float(fractions @ pure) + row["e_above_hull"]
        points.append({"formula": row["formula"], "fractions": _rounded(fractions), "sample": int(str(i)),
                       "energy": round(float(energy), 5), "above": round(float(row["e_above_hull"]), 5),
                       "stable": False})  # fmt: skip
    return {"elements": list(symbols), "points": points, "hull": [[stable[a], stable[b]] for a, b in edges]}


def _edges(fractions: np.ndarray, energies: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of stable crystals (M, n) that coexist: neighbours on the lower hull."""
    from scipy.spatial import ConvexHull

    if fractions.shape[1] == 2:
        order = np.argsort(fractions[:, 1])
        return [(int(a), int(b)) for a, b in pairwise(order)]
    if len(fractions) == 3:
        return [(0, 1), (0, 2), (1, 2)]
    facets = ConvexHull(np.column_stack([fractions[:, 1:], energies]))
    below = facets.simplices[facets.equations[:, -2] < -1e-9]
    pairs = {tuple(sorted((int(f[i]), int(f[j])))) for f in below for i, j in ((0, 1), (0, 2), (1, 2))}
    return sorted((a, b) for a, b in pairs)


def _formula(symbols: Sequence[str], fractions: np.ndarray) -> str:
    amounts = {symbol: float(x) for symbol, x in zip(symbols, fractions, strict=True) if x > 0}
    return Composition(amounts).get_integer_formula_and_factor(max_denominator=100)[0]


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(x), 5) for x in values]
