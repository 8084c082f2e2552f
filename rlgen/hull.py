"""The convex hull of known crystals on one energy scale: how far above it, or below, a new crystal lies.

The hull's energy at a composition is the lowest that any mixture of reference crystals has there: a small linear
programme over the entries of the chemical system, the same number as pymatgen's `PhaseDiagram` gives
(`tests/test_hull.py` holds the two together) without building the whole diagram.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import as_file, files
from itertools import combinations
from pathlib import Path

import numpy as np
from pymatgen.core import Composition

#: Compositions whose hull energy is remembered.
REMEMBERED = 50_000


class HullError(ValueError):
    """A composition without a hull (elements whose own crystals are missing), or an energy of another scale."""


class Hull:
    """Reference crystals of one scale: the lowest energy (eV/atom) of each reduced formula.

    Use `Hull.load(scale)` for the shipped ones. `sources[formula]` says where an entry comes from.
    """

    def __init__(
        self,
        scale: str,
        energies: Mapping[str, float],
        sources: Mapping[str, str] | None = None,
        provenance: Mapping[str, object] | None = None,
    ):
        self.scale = scale
        self.sources = dict(sources or {})
        self.provenance = dict(provenance or {})
        self._by_system: dict[frozenset[str], list[tuple[dict[str, float], float]]] = {}
        for formula, energy in energies.items():
            amounts = Composition(formula).get_el_amt_dict()
            total = sum(amounts.values())
            fractions = {symbol: amount / total for symbol, amount in amounts.items()}
            self._by_system.setdefault(frozenset(fractions), []).append((fractions, float(energy)))
        self.elements = frozenset(symbol for system in self._by_system if len(system) == 1 for symbol in system)
        self._remember = lru_cache(maxsize=REMEMBERED)(self._solve)

    @classmethod
    def load(cls, scale: str) -> Hull:
        """The shipped hull of that scale, read once per process."""
        return _shipped(scale)

    @classmethod
    def read(cls, path: Path) -> Hull:
        """A hull from a Parquet file as `rlgen.build_hull` writes it."""
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        provenance = json.loads(table.schema.metadata[b"rlgen"])
        formulas = table["reduced_formula"].to_pylist()
        energies = dict(zip(formulas, table["energy_per_atom"].to_pylist(), strict=True))
        sources = dict(zip(formulas, table["source"].to_pylist(), strict=True))
        return cls(provenance["scale"], energies, sources, provenance)

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._by_system.values())

    def hull_energy(self, composition: Composition) -> float:
        """Energy (eV/atom) of the stablest mixture of reference crystals at this composition."""
        amounts = composition.get_el_amt_dict()
        missing = sorted(set(amounts) - self.elements)
        if missing:
            raise HullError(f"no hull: the {self.scale} references have no crystal of the element {', '.join(missing)}")
        total = sum(amounts.values())
        # Rounded, so that all ways to write one composition meet in the cache; 1e-9 changes nothing in the energy.
        return self._remember(tuple(sorted((symbol, round(n / total, 9)) for symbol, n in amounts.items())))

    def e_above_hull(self, composition: Composition, energy_per_atom: float, *, scale: str) -> float:
        """Distance (eV/atom) to the hull of the references alone: negative for a new crystal below all of them."""
        if scale != self.scale:
            raise HullError(f"an energy on the scale {scale} cannot be compared with the hull of {self.scale}")
        return float(energy_per_atom) - self.hull_energy(composition)

    def _solve(self, target: tuple[tuple[str, float], ...]) -> float:
        symbols = [symbol for symbol, _ in target]
        entries = [
            entry
            for size in range(1, len(symbols) + 1)
            for system in combinations(symbols, size)
            for entry in self._by_system.get(frozenset(system), ())
        ]
        energies = np.array([energy for _, energy in entries])
        if len(symbols) == 1:
            return float(energies.min())
        fractions = np.array([[entry.get(symbol, 0.0) for symbol in symbols] for entry, _ in entries])
        return lowest_mixture(fractions, energies, np.array([x for _, x in target]))


def lowest_mixture(fractions: np.ndarray, energies: np.ndarray, target: np.ndarray) -> float:
    """min λ·energies over λ ≥ 0 with λ·fractions = target; fractions (M, n), energies (M,), target (n,) -> eV/atom."""
    from scipy.optimize import linprog

    solution = linprog(energies, A_eq=fractions.T, b_eq=target, bounds=(0, None), method="highs")
    if not solution.success:
        raise HullError(f"no hull: the linear programme over {len(energies)} crystals failed ({solution.message})")
    return float(solution.fun)


def shipped_scales() -> list[str]:
    """The scales that hulls are shipped for."""
    names = (entry.name for entry in files("rlgen").joinpath("assets").iterdir())
    return sorted(n.removeprefix("hull_").removesuffix(".parquet") for n in names if n.startswith("hull_"))


@lru_cache(maxsize=4)
def _shipped(scale: str) -> Hull:
    known = shipped_scales()
    if scale not in known:
        raise HullError(f"no hull is shipped for the scale {scale}; there are {', '.join(known) or 'none'}")
    with as_file(files("rlgen").joinpath("assets", f"hull_{scale}.parquet")) as path:
        return Hull.read(path)
