"""The convex hull of known crystals on one energy scale: how far above it, or below, a new crystal lies.

`python -m rlgen.hull energy=… data=…` builds one. The hull's energy at a composition is the lowest that any mixture of
reference crystals has there (`mixture.py`), the same number as pymatgen's `PhaseDiagram` gives
(`tests/test_hull.py` holds the two together) without building the whole diagram.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import as_file, files
from itertools import combinations
from pathlib import Path

import numpy as np
from pymatgen.core import Composition

from rlgen.data import cache_dir
from rlgen.hull.mixture import ChemicalSystem
from rlgen.types import UserError

log = logging.getLogger(__name__)

#: Chemical systems whose crystals and facets are remembered.
REMEMBERED = 10_000


class HullError(ValueError):
    """A composition without a hull (elements whose own crystals are missing), or an energy of another scale."""


class Hull:
    """Reference crystals of one scale: the lowest energy (eV/atom) of each reduced formula.

    Use `Hull.load(scale)`. `sources[formula]` says where an entry comes from, `origin` where the hull does.
    """

    def __init__(
        self,
        scale: str,
        energies: Mapping[str, float],
        sources: Mapping[str, str] | None = None,
        provenance: Mapping[str, object] | None = None,
        origin: str = "",
    ):
        self.scale = scale
        self.sources = dict(sources or {})
        self.provenance = dict(provenance or {})
        self.origin = origin
        self._by_system: dict[frozenset[str], list[tuple[dict[str, float], float]]] = {}
        for formula, energy in energies.items():
            amounts = Composition(formula).get_el_amt_dict()
            total = sum(amounts.values())
            fractions = {symbol: amount / total for symbol, amount in amounts.items()}
            self._by_system.setdefault(frozenset(fractions), []).append((fractions, float(energy)))
        self.elements = frozenset(symbol for system in self._by_system if len(system) == 1 for symbol in system)
        self.system = lru_cache(maxsize=REMEMBERED)(self._system)

    @classmethod
    def load(cls, scale: str, path: str | Path | None = None) -> Hull:
        """The hull in the file `path`; without one, that which is shipped for the scale, or was built in the cache.

        Read once per process. UserError: there is none, or the file is of another scale.
        """
        return _load(scale, None if path is None else Path(path))

    @classmethod
    def read(cls, path: Path) -> Hull:
        """A hull from a Parquet file as `rlgen.hull.build` writes it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            provenance = json.loads(table.schema.metadata[b"rlgen"])
            formulas = table["reduced_formula"].to_pylist()
            energies = dict(zip(formulas, table["energy_per_atom"].to_pylist(), strict=True))
            sources = dict(zip(formulas, table["source"].to_pylist(), strict=True))
        except (OSError, pa.ArrowException, KeyError, TypeError) as error:
            raise UserError(f"{path}: no hull as python -m rlgen.hull writes it ({error})") from error
        return cls(provenance["scale"], energies, sources, provenance, str(path))

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._by_system.values())

    def __str__(self) -> str:
        return f"{len(self):,} formulas of {self.provenance.get('data', 'unknown data')} ({self.origin or 'in memory'})"

    def hull_energy(self, composition: Composition) -> float:
        """Energy (eV/atom) of the stablest mixture of reference crystals at this composition."""
        amounts = composition.get_el_amt_dict()
        symbols = tuple(sorted(amounts))
        missing = [symbol for symbol in symbols if symbol not in self.elements]
        if missing:
            raise HullError(f"no hull: the {self.scale} references have no crystal of the element {', '.join(missing)}")
        target = np.array([amounts[symbol] for symbol in symbols])
        return self.system(symbols).lowest(target / target.sum())

    def e_above_hull(self, composition: Composition, energy_per_atom: float, *, scale: str) -> float:
        """Distance (eV/atom) to the hull of the references alone: negative for a new crystal below all of them."""
        if scale != self.scale:
            raise HullError(f"an energy on the scale {scale} cannot be compared with the hull of {self.scale}")
        return float(energy_per_atom) - self.hull_energy(composition)

    def _system(self, symbols: tuple[str, ...]) -> ChemicalSystem:
        """The reference crystals within the chemical system of these elements."""
        entries = [min(self._by_system[frozenset([symbol])], key=lambda entry: entry[1]) for symbol in symbols]
        for size in range(2, len(symbols) + 1):
            for system in combinations(symbols, size):
                entries += self._by_system.get(frozenset(system), ())
        fractions = np.array([[entry.get(symbol, 0.0) for symbol in symbols] for entry, _ in entries])
        return ChemicalSystem(fractions, np.array([energy for _, energy in entries]))


def shipped_scales() -> list[str]:
    """The scales that hulls are shipped for."""
    names = (entry.name for entry in files("rlgen").joinpath("assets").iterdir())
    return sorted(n.removeprefix("hull_").removesuffix(".parquet") for n in names if n.startswith("hull_"))


def file_name(scale: str) -> str:
    """The name of a scale's hull file; signs that a file name should not have become hyphens."""
    return f"hull_{re.sub(r'[^A-Za-z0-9._+-]', '-', scale)}.parquet"


def built(scale: str) -> Path:
    """Where `python -m rlgen.hull` writes the hull of a scale unless told otherwise."""
    return cache_dir() / "hull" / file_name(scale)


@lru_cache(maxsize=8)
def _load(scale: str, path: Path | None) -> Hull:
    if path is not None:
        hull = Hull.read(path)
    elif scale in shipped_scales():
        with as_file(files("rlgen").joinpath("assets", file_name(scale))) as shipped:
            hull = Hull.read(shipped)
        hull.origin = "shipped"
    elif built(scale).exists():
        hull = Hull.read(built(scale))
    else:
        raise UserError(f"there is no hull of {scale} energies: python -m rlgen.hull energy=… data=… builds it; "
                        f"shipped are {', '.join(shipped_scales())}")
    if hull.scale != scale:
        raise UserError(f"{hull.origin}: a hull of {hull.scale} energies; those of {scale} need their own")
    log.info("hull of %s: %s", scale, hull)
    return hull
