"""A data set without a download: the AFLOW prototypes that pymatgen ships, decorated with other elements.

Each prototype keeps its own elements once and is decorated with others drawn from pymatgen's data-mined ionic
substitution probabilities (Hautier et al., Inorg. Chem. 50, 656 (2011)). Where the prototype has whole oxidation
states, decorations are charge-balanced (anions that the table lacks, such as P3- or C4-, are swapped within their
group); for metals, elements and the rest, elements are swapped at equal oxidation state by the same table, without a
balance. Cells are scaled by pymatgen's data-mined lattice scaling (Chu et al., Comput. Mater. Sci. 146, 184 (2018)),
relative to what it says of the prototype itself. Geometry is not relaxed: good enough to learn to write crystals from,
not a list of stable ones.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cache as memoise
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlgen.data import cache
from rlgen.data.parsing import Row, row_of
from rlgen.data.progress import bar
from rlgen.data.records import Record
from rlgen.protostructure import library

if TYPE_CHECKING:
    import pyarrow as pa
    from pymatgen.core import Structure

#: Raise when the recipe changes: part of the cache key.
RECIPE = 3
PER_PROTOTYPE = 14
MAX_ATOMS = 40
#: Options kept per site kind, by the number of kinds: bounds the product over kinds at some ten thousand.
_OPTIONS = {1: 40, 2: 40, 3: 20, 4: 10}
_OPTIONS_MANY = 6
#: Decorations less likely than this share of the likeliest are not drawn.
_THRESHOLD = 1e-4
#: Å³ per atom outside which a scaled cell is taken for a failure of the scaling.
_VOLUME_PER_ATOM = (4.0, 90.0)
#: Atoms nearer than this share of the sum of their atomic radii, or than so many Å, are too close.
_CONTACT, _NEAREST = 0.6, 0.7
#: What stands in for the anions that the table lacks, by charge: their group.
_ANIONS = {
    -1: ("H", "F", "Cl", "Br", "I"),
    -2: ("Te", "S", "Se"),
    -3: ("P", "As", "Sb", "Bi"),
    -4: ("C", "Si", "Ge", "Sn"),
}
_LACKING = {("H", -1), ("Te", -2), *((s, q) for q in (-3, -4) for s in _ANIONS[q])}
#: Noble gases, and the elements that common potentials do not cover (Po to Ra, beyond Pu), are not written.
_EXCLUDED = {2, 10, 18, 36, 54, *range(84, 89), *range(95, 119)}


@dataclass(frozen=True)
class Prototype:
    """One entry of the AFLOW library: reduced primitive cell, and its oxidation states if they are whole numbers.

    volume_scale: the cell's volume over the one that the scaling predicts for it.
    """

    index: int
    label: str
    structure: Structure
    space_group: int
    oxidation: dict[str, int] | None
    volume_scale: float = 1.0


def build(
    *, limit: int | None = None, per_prototype: int = PER_PROTOTYPE, max_atoms: int = MAX_ATOMS, seed: int = 0
) -> list[Record]:
    """The decorated prototypes, the same for the same arguments; cached. limit: at most this many crystals."""
    table = build_table(limit=limit, per_prototype=per_prototype, max_atoms=max_atoms, seed=seed)
    return cache.records_of(table, "prototype")[0]


def build_table(
    *, limit: int | None = None, per_prototype: int = PER_PROTOTYPE, max_atoms: int = MAX_ATOMS, seed: int = 0
) -> pa.Table:
    """As `build`, in the form that is cached. A decoration that does not come out as a crystal leaves no row."""
    key = cache.key_of([], f"prototypes:{RECIPE}:{per_prototype}:{max_atoms}:{seed}:{_library_digest()}")
    return cache.table_for(key, lambda _: _rows(per_prototype, max_atoms, seed, limit), limit)


def _library_digest() -> str:
    """The content of pymatgen's two tables: another version of pymatgen may ship others."""
    import pymatgen.core.structure_prediction as prediction

    tables = Path(str(prediction.__file__)).parent
    files = [tables / "data" / "lambda.json", tables / "DLS_bond_params.yaml"]
    files.append(Path(str(library().__file__)).parent / "aflow_prototypes.json.gz")
    return cache.key_of([file for file in files if file.is_file()], "library")


def _rows(per_prototype: int, max_atoms: int, seed: int, limit: int | None) -> list[Row]:
    """Rounds over all prototypes, one decoration of each a round: the first thousand are as diverse as the whole."""
    prototypes = _prototypes(max_atoms)
    drawn = [_decorations(p, per_prototype, np.random.default_rng([seed, p.index])) for p in prototypes]
    rows: list[Row] = []
    with bar("Decorating prototypes", min(limit or math.inf, sum(map(len, drawn)))) as progress:
        for turn in range(per_prototype):
            for prototype, decorations in zip(prototypes, drawn, strict=True):
                if turn < len(decorations) and (row := _row(prototype, decorations[turn], len(rows) + 1)):
                    rows.append(row)
                    if len(rows) == limit:
                        return rows
                progress.advance()
    return rows


@memoise
def _prototypes(max_atoms: int) -> list[Prototype]:
    from pymatgen.core import Structure
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    found = []
    for index, entry in enumerate(library().AFLOW_PROTOTYPE_LIBRARY):
        source = entry["snl"].structure
        if len(source) > max_atoms or not source.is_ordered:
            continue
        structure = Structure.from_sites(list(source)).get_primitive_structure().get_reduced_structure()
        space_group = SpacegroupAnalyzer(structure, symprec=0.01).get_space_group_number()
        scale = structure.volume / (_volume(structure) or structure.volume)
        found.append(Prototype(index, entry["tags"]["aflow"], structure, space_group, _oxidation(structure), scale))
    return found


def _oxidation(structure: Structure) -> dict[str, int] | None:
    """Whole-number oxidation states for which there are substitutes, or None. More than 4 elements take minutes."""
    if not 2 <= len(structure.composition) <= 4:
        return None
    guesses = structure.composition.oxi_state_guesses(max_sites=-1)
    if not guesses or not all(float(state).is_integer() for state in guesses[0].values()):
        return None
    states = {symbol: int(state) for symbol, state in guesses[0].items()}
    return states if all(_ions(*ion) for ion in states.items()) else None


@memoise
def _table():
    from pymatgen.core.structure_prediction.substitution_probability import SubstitutionProbability

    return SubstitutionProbability()


@memoise
def _ions(symbol: str, state: int | None) -> tuple[tuple[str, int, float], ...]:
    """Substitutes of an element as (symbol, oxidation state, probability), likeliest first.

    With an oxidation state: of that ion by any ion of like sign. Without: by elements at equal oxidation state, the
    likeliest of all the states that the table has for both.
    """
    table = _table()
    if state is not None and (symbol, state) in _LACKING:
        group = _ANIONS[state]
        return tuple((s, state, 0.3 if s == symbol else 0.1) for s in sorted(group, key=lambda s: (s != symbol, s)))
    own = [s for s in table.species if s.symbol == symbol and (state is None or s.oxi_state == state)]
    best: dict[tuple[str, int], float] = {}
    for ion in own:
        for other in table.species:
            fits = other.oxi_state == ion.oxi_state if state is None else other.oxi_state * ion.oxi_state > 0
            if not fits or other.Z in _EXCLUDED:
                continue
            key = (other.symbol, int(other.oxi_state) if state is not None else 0)
            best[key] = max(best.get(key, 0.0), table.cond_prob(other, ion))
    return tuple((s, q, p) for (s, q), p in sorted(best.items(), key=lambda item: (-item[1], item[0])))


def _decorations(prototype: Prototype, count: int, rng: np.random.Generator) -> list[dict[str, str]]:
    """Up to `count` maps from the prototype's elements to others, its own elements first where they are allowed."""
    composition = prototype.structure.composition
    symbols = [e.symbol for e in composition.elements]
    keep = _OPTIONS.get(len(symbols), _OPTIONS_MANY)
    states = prototype.oxidation
    options = [_ions(s, None if states is None else states[s])[:keep] for s in symbols]
    amounts = [composition[s] for s in symbols]
    weights: dict[tuple[str, ...], float] = {}
    own = tuple(symbols)
    seen = {_formula(own, amounts)}
    for choice in product(*options):
        target = tuple(c[0] for c in choice)
        if target == own or len(set(target)) < len(target):
            continue
        if states is not None and abs(sum(n * c[1] for n, c in zip(amounts, choice, strict=True))) > 1e-6:
            continue
        weights[target] = max(weights.get(target, 0.0), math.prod(c[2] for c in choice))
    first = [] if any(e.Z in _EXCLUDED for e in composition.elements) else [dict(zip(own, own, strict=True))]
    least = _THRESHOLD * max(weights.values(), default=0.0)
    targets = sorted(t for t, w in weights.items() if w > least)
    if targets:
        # The square root flattens the draw: else the same few likely swaps would fill the set.
        p = np.sqrt([weights[t] for t in targets])
        for i in rng.choice(len(targets), size=len(targets), replace=False, p=p / p.sum()):
            # Equal formulas on one prototype are often the same crystal with the names of like sites exchanged.
            formula = _formula(targets[i], amounts)
            if formula not in seen:
                seen.add(formula)
                first.append(dict(zip(own, targets[i], strict=True)))
            if len(first) >= count:
                break
    return first[:count]


def _formula(symbols: tuple[str, ...], amounts: list[float]) -> str:
    return "".join(f"{s}{n:g}" for s, n in sorted(zip(symbols, amounts, strict=True)))


def _volume(structure: Structure) -> float | None:
    """The volume (Å³) that bonds of usual length give, or None where no atom has a neighbour within reach."""
    from pymatgen.core.structure_prediction.volume_predictor import DLSVolumePredictor

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The bounds are on the change against the structure's own volume: NaCl to CsI is a factor of 2.6.
            return DLSVolumePredictor(min_scaling=0.3, max_scaling=3.5).predict(structure)
    except ValueError:
        return None


def _row(prototype: Prototype, decoration: dict[str, str], row: int) -> Row | None:
    """The decorated, scaled crystal, or None if it does not come out as one."""
    from pymatgen.core import Structure

    structure = prototype.structure
    if any(symbol != other for symbol, other in decoration.items()):
        species = [decoration[site.specie.symbol] for site in structure]
        structure = Structure(structure.lattice, species, structure.frac_coords)
        predicted = _volume(structure)
        if predicted is None:
            return None
        # What the prediction gets wrong of the prototype it gets wrong of its decorations: against MP-20, dividing
        # that out takes the mean error of ln V from 0.23 to 0.18.
        structure.scale_lattice(predicted * prototype.volume_scale)
    volume = structure.volume
    if not _VOLUME_PER_ATOM[0] < volume / len(structure) < _VOLUME_PER_ATOM[1] or _too_close(structure):
        return None
    formula = structure.composition.reduced_formula
    properties = {"spacegroup.number": float(prototype.space_group)}
    identity = f"{prototype.label}-{prototype.index}-{formula}"
    return row_of(structure, file="prototypes", row=row, id=identity, properties=properties)


def _too_close(structure: Structure) -> bool:
    """Whether two atoms, or an atom and its own image, are nearer than atoms of their sizes can be."""
    elements = [site.specie for site in structure]
    radii = np.array([float(e.atomic_radius or e.atomic_radius_calculated or 1.5) for e in elements])
    left, right, _, distance = structure.get_neighbor_list(r=max(_CONTACT * 2 * float(radii.max()), _NEAREST))
    limit = np.maximum(_CONTACT * (radii[left] + radii[right]), _NEAREST)
    return bool((distance < limit).any())
