"""The lowest mixture of known crystals: the linear programme behind every energy above the hull."""

from __future__ import annotations

import numpy as np

#: Reduced costs (eV/atom) and amounts below this are rounding.
EPSILON = 1e-10
#: So many exchanges take the steepest; after them Bland's rule, which cannot go in circles, takes the first.
STEEPEST = 100


class ChemicalSystem:
    """The crystals of one chemical system, and the simplices of its lower hull that were met so far.

    fractions: (M, n), atomic fractions of the n elements in each crystal; the first n rows are the elements themselves.
    energies: (M,) eV/atom. A facet of the hull is n crystals whose plane no other crystal lies below: what a
    composition inside it decomposes into. Facets are found one at a time and kept, as most compositions that come later
    lie in one of them.
    """

    def __init__(self, fractions: np.ndarray, energies: np.ndarray):
        self.fractions, self.energies = fractions, energies
        self._facets: list[np.ndarray] = []
        #: (F, n, n): what turns a composition into amounts of a facet's crystals.
        self._inverses = np.empty((0, fractions.shape[1], fractions.shape[1]))

    def lowest(self, target: np.ndarray) -> float:
        """min λ·energies over λ ≥ 0 with λ·fractions = target (n,), in eV/atom."""
        mixture = self._mixture(target)
        same = (np.abs(self.fractions - target) < EPSILON).all(axis=1)
        own = float(self.energies[same].min(initial=np.inf))
        # A crystal on the hull has its own energy there, and not that up to rounding.
        return own if own < mixture + 10 * EPSILON else mixture

    def _mixture(self, target: np.ndarray) -> float:
        amounts = self._inverses @ target
        inside = (amounts > -EPSILON).all(axis=1)
        if inside.any():
            k = int(inside.argmax())
            return float(amounts[k] @ self.energies[self._facets[k]])
        facet = simplex(self.fractions, self.energies, target)
        inverse = np.linalg.inv(self.fractions[facet].T)
        self._facets.append(facet)
        self._inverses = np.concatenate([self._inverses, inverse[None]])
        return float(inverse @ target @ self.energies[facet])


def simplex(fractions: np.ndarray, energies: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The crystals (n,) that the lowest mixture at a composition consists of.

    The revised simplex method (Dantzig, Orden and Wolfe, Pacific J. Math. 5, 183 (1955)) from the elements on.
    fractions: (M, n), its first n rows the identity. energies: (M,) eV/atom. target: (n,), all amounts above 0.
    """
    n = len(target)
    basis = np.arange(n)
    for exchange in range(100 * len(energies)):
        inverse = np.linalg.inv(fractions[basis].T)
        costs = energies - fractions @ (energies[basis] @ inverse)
        entering = int(costs.argmin())
        if costs[entering] > -EPSILON:
            return basis
        if exchange >= STEEPEST:
            entering = int((costs < -EPSILON).argmax())
        direction, amounts = inverse @ fractions[entering], inverse @ target
        leaving = direction > EPSILON
        ratios = np.where(leaving, np.maximum(amounts, 0) / np.where(leaving, direction, 1), np.inf)
        if exchange < STEEPEST:
            out = int(ratios.argmin())
        else:
            out = min(np.flatnonzero(ratios <= ratios.min() + EPSILON).tolist(), key=lambda k: basis[k])
        basis[out] = entering
    raise ArithmeticError(f"no lowest mixture of {len(energies)} crystals was found")
