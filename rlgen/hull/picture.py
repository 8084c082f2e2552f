"""A chemical system of two or three elements, drawn: the known hull, and how far above it new crystals lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.core import Composition

from rlgen.hull import Hull

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Energies above the hull (eV/atom) at which the colours of new crystals end, and up to which a crystal is named.
WORST, NAMED = 0.2, 0.0
#: A corner of the triangle for each of three elements.
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])


def lower_hull(fractions: np.ndarray, formation: np.ndarray) -> np.ndarray:
    """Facets (F, n) of the lower convex hull of M crystals, as their indices.

    fractions: (M, n), the first n rows the elements. formation: (M,) energies of formation in eV/atom, 0 of the
    elements; crystals above 0 are never on it.
    """
    from scipy.spatial import ConvexHull

    n = fractions.shape[1]
    kept = np.concatenate([np.arange(n), n + np.flatnonzero(formation[n:] < -1e-8)])
    if len(kept) == n:
        return np.arange(n)[None]
    points = np.column_stack([fractions[kept, :-1], formation[kept]])
    hull = ConvexHull(points)
    below = hull.equations[:, n - 1] < -1e-6  # facets that look down
    return kept[hull.simplices[below]]


def picture(hull: Hull, elements: Sequence[str], compositions: Sequence[Composition], above: Sequence[float]) -> Figure:
    """Known crystals and their hull, and new crystals (B) coloured by their energies above it (eV/atom).

    elements: two or three. Of two the vertical axis is the energy of formation. What is at or below the hull is named.
    """
    from matplotlib.figure import Figure

    symbols = tuple(sorted(elements))
    system = hull.system(symbols)
    pure = system.energies[: len(symbols)]
    formation = system.energies - system.fractions @ pure
    facets = lower_hull(system.fractions, formation)
    new = np.array([[c.get_atomic_fraction(symbol) for symbol in symbols] for c in compositions]).reshape(
        len(compositions), len(symbols))
    values = np.asarray(above, dtype=float)
    figure = Figure(figsize=(6.4, 5.2), dpi=120, layout="constrained")
    axes: Any = figure.subplots()
    if len(symbols) == 2:
        known_at, new_at = (np.column_stack([f[:, 1], e]) for f, e in (
            (system.fractions, formation),
            (new, np.array([hull.hull_energy(c) for c in compositions]) - new @ pure + values)))
        axes.set(xlabel=f"atomic fraction of {symbols[1]} in {symbols[0]}", ylabel="energy of formation (eV/atom)",
                 ylim=(min(0.0, *known_at[:, 1], *new_at[:, 1]) * 1.1 - 0.02, max(WORST, 0.05)))
    else:
        known_at, new_at = system.fractions @ _CORNERS, new @ _CORNERS
        axes.set(aspect="equal", xlim=(-0.1, 1.1), ylim=(-0.1, 1.0))
        axes.set_axis_off()
        for symbol, corner in zip(symbols, _CORNERS, strict=True):
            outwards = corner + 0.06 * (corner - _CORNERS.mean(0))
            axes.text(*outwards, symbol, ha="center", va="center", fontsize=13)
    stable = np.unique(facets)
    for facet in facets:
        for i, a in enumerate(facet):
            for b in facet[:i]:
                axes.plot(*known_at[[a, b]].T, color="0.6", linewidth=0.8, zorder=1)
    axes.scatter(*known_at[stable].T, s=28, color="black", zorder=2, label=f"known, on the hull ({len(stable)})")
    order = np.argsort(-values)
    drawn = axes.scatter(*new_at[order].T, c=values[order], s=34, cmap="viridis", vmin=0, vmax=WORST, zorder=3,
                         edgecolors="white", linewidths=0.5, label=f"sampled ({len(values)})")
    figure.colorbar(drawn, ax=axes, label="energy above the hull of known crystals (eV/atom)", shrink=0.8,
                    extend="both")
    named: set[str] = set()
    for i in order[::-1]:
        formula = compositions[i].reduced_formula
        if values[i] <= NAMED and formula not in named:
            named.add(formula)
            axes.annotate(formula, new_at[i], xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_title(f"{'-'.join(symbols)}, {hull.scale}", fontsize=10)
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    return figure
