"""Golden figures of the potentials against published values: `python benchmarks/golden.py energies=chgnet rows=2000`.

Three tables, for the potentials in `energies=` (default: all three):
1. 20 well-known crystals (`tests/golden/crystals.json`): total energies of elements, formation energies of compounds.
2. Formation energies of MP-20's val rows (`RLGEN_DATA`; `rows=all` or a number, drawn by `seed=`).
3. How far those rows lie above the hull, against the published e_above_hull.

A formation energy here is the energy minus those of the potential's own crystals of the elements, the lowest in its
shipped hull. Potentials trained on uncorrected energies get the corrections that the Materials Project adds to its own
(Wang et al., Sci. Rep. 11, 15496 (2021), as in pymatgen), since the published values include them.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import defaultdict
from functools import cache
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry
from scipy.stats import spearmanr

from rlgen.data import Record, load
from rlgen.energies import Potential, load_potential
from rlgen.hull import Hull
from rlgen.metrics import roc_auc

CRYSTALS = Path(__file__).parents[1] / "tests" / "golden" / "crystals.json"
#: What each potential's training data lack of the published values: "" nothing; "anions" the corrections of anions;
#: "all" those of anions and of elements with U. (MatPES has no U, to whose use the second are fitted.)
LACKS = {"chgnet": "", "m3gnet": "all", "tensornet": "anions"}
_MP = MaterialsProject2020Compatibility(check_potcar=False)


def correction(crystal: Structure | Composition, lacks: str) -> float:
    """What the Materials Project adds (eV/atom) to the energy of such a crystal; `lacks` as in the table above.

    Of a composition alone, peroxides and the like are known by their formulas.
    """
    if not lacks:
        return 0.0
    composition = crystal if isinstance(crystal, Composition) else crystal.composition
    symbols = {element.symbol for element in composition}
    most_negative = max(composition.elements, key=lambda element: element.X).symbol
    u = {s: v for s, v in _MP.u_settings.get(most_negative, {}).items() if s in symbols}
    parameters = {"software": "none", "run_type": "GGA+U" if u else "GGA", "hubbards": u}
    entry = ComputedEntry if crystal is composition else ComputedStructureEntry
    adjustments = _MP.get_adjustments(entry(crystal, 0.0, parameters=parameters))
    return sum(a.value for a in adjustments if lacks == "all" or "anion" in a.name) / composition.num_atoms


@cache
def correction_of_formula(formula: str, lacks: str) -> float:
    return correction(Composition(formula), lacks)


def formation_energy(structure: Structure, energy: float, hull: Hull) -> float:
    """Formation energy (eV/atom) from the potential's own elements, without corrections."""
    fractions = structure.composition.fractional_composition.get_el_amt_dict()
    return energy - sum(x * hull.hull_energy(Composition(symbol)) for symbol, x in fractions.items())


def known_crystals() -> list[tuple[dict, Structure]]:
    """The 20 crystals with their published values."""
    rows = json.loads(CRYSTALS.read_text(encoding="utf-8"))["crystals"]
    return [(row, Structure(Lattice(row["lattice"]), row["species"], row["frac_coords"])) for row in rows]


def golden_value(row: dict, structure: Structure, energy: float, name: str, hull: Hull) -> float:
    """What is compared with the published value of a crystal: its total energy as it is, or its formation energy."""
    if row["quantity"] == "total energy":
        return energy
    return formation_energy(structure, energy, hull) + correction(structure, LACKS[name])


def crystals_table(potentials: dict[str, Potential]) -> None:
    print("\n## Well-known crystals, eV/atom: published, and potential minus published\n")
    print(f"| | | published | source | {' | '.join(potentials)} |\n|---|---|---:|---|{'---:|' * len(potentials)}")
    rows = known_crystals()
    differences = {}
    for name, potential in potentials.items():
        hull = Hull.load(potential.scale)
        points = potential.evaluate([structure for _, structure in rows], forces=False)
        differences[name] = [golden_value(row, structure, point.energy, name, hull) - row["published"]
                             for (row, structure), point in zip(rows, points, strict=True)]
    for i, (row, _) in enumerate(rows):
        shown = " | ".join(f"{differences[name][i]:+.3f}" for name in potentials)
        print(f"| {row['formula']} | {row['quantity']} | {row['published']:.3f} | {row['source']} | {shown} |")
    for quantity in ("total energy", "formation energy"):
        which = [i for i, (row, _) in enumerate(rows) if row["quantity"] == quantity]
        shown = " | ".join(f"{np.mean(np.abs(np.array(differences[name])[which])):.3f}" for name in potentials)
        print(f"| mean absolute difference | {quantity} | | | {shown} |")


def fitted_on_the_other_half(compositions: list[Composition], missing: np.ndarray) -> np.ndarray:
    """What is left of `missing` (eV/atom) when the elements' energies are fitted on each half for the other half."""
    symbols = sorted({element.symbol for composition in compositions for element in composition})
    fractions = np.array([[c.get_atomic_fraction(symbol) for symbol in symbols] for c in compositions])
    left = missing.copy()
    for half in (0, 1):
        test = np.arange(len(missing)) % 2 == half
        left[test] -= fractions[test] @ np.linalg.lstsq(fractions[~test], missing[~test], rcond=1e-6)[0]
    return left


def formation_table(rows: list[Record], energies: dict[str, dict[str, float]], scales: dict[str, str]) -> None:
    print(f"\n## Formation energies of {len(rows):,} val rows of MP-20, mean absolute error in eV/atom\n")
    print("| | rows | own elements | median error | fitted on the other half | uncorrected |\n|---|" + "---:|" * 5)
    for name, found in energies.items():
        hull = Hull.load(scales[name])
        used = [row for row in rows if np.isfinite(found[row.id])
                and {e.symbol for e in row.structure.composition} <= hull.elements]
        structures = [row.structure for row in used]
        plain = np.array([formation_energy(s, found[row.id], hull) - row.properties["formation_energy_per_atom"]
                          for row, s in zip(used, structures, strict=True)])
        errors = plain + np.array([correction(structure, LACKS[name]) for structure in structures])
        left = fitted_on_the_other_half([structure.composition for structure in structures], errors)
        print(f"| {name} | {len(used):,} | {np.abs(errors).mean():.3f} | {np.median(errors):+.3f} | "
              f"{np.abs(left).mean():.3f} | {np.abs(plain).mean():.3f} |")


def above_the_others(
    rows: list[Record], known: list[Record], energies: dict[str, float], scale: str, lacks: str = ""
) -> dict[str, float]:
    """Each row's energy (eV/atom) above the hull of all other train and val crystals: leave one out, by row's id.

    lacks: the corrections to add to every energy, which then go by formula, so that polymorphs get the same.
    """
    table = pq.read_table(str(files("rlgen").joinpath("assets", f"hull_{scale}.parquet")))
    hull = dict(zip(table["reduced_formula"].to_pylist(), table["energy_per_atom"].to_pylist(), strict=True))
    by_system = defaultdict(list)
    for formula in hull:
        by_system[frozenset(e.symbol for e in Composition(formula))].append(formula)
    same_formula = defaultdict(list)
    for record in known:
        same_formula[record.structure.composition.reduced_formula].append(record.id)
    above = {}
    for row in rows:
        composition = row.structure.composition
        symbols = sorted(element.symbol for element in composition)
        systems = [frozenset(part) for n in range(1, len(symbols) + 1) for part in combinations(symbols, n)]
        others = {formula: hull[formula] for system in systems for formula in by_system[system]}
        own = composition.reduced_formula
        rest = [energies[i] for i in same_formula[own] if i != row.id and np.isfinite(energies[i])]
        others.pop(own, None)
        if rest:
            others[own] = min(rest)
        others = {formula: energy + correction_of_formula(formula, lacks) for formula, energy in others.items()}
        if np.isfinite(energies[row.id]) and all(Composition(s).reduced_formula in others for s in symbols):
            energy = energies[row.id] + correction_of_formula(own, lacks)
            above[row.id] = energy - Hull(scale, others).hull_energy(composition)
    return above


def hull_table(rows: list[Record], known: list[Record], energies: dict[str, dict[str, float]], scales: dict) -> None:
    published = {row.id: row.properties["e_above_hull"] for row in rows}
    stable = sum(value <= 0 for value in published.values())
    print(f"\n## Energy above the hull of {len(rows):,} val rows ({stable:,} published as stable)\n")
    print("| | rows | Spearman | ROC AUC, stable or not | MAE (eV/atom) | 1 % to 99 % (eV/atom) |\n|---|" + "---:|" * 5)
    corrected = [(name, LACKS[name]) for name in energies if LACKS[name]]
    for name, lacks in [*((name, "") for name in energies), *corrected]:
        above = above_the_others(rows, known, energies[name], scales[name], lacks)
        ours, theirs = np.array(list(above.values())), np.array([published[i] for i in above])
        low, high = np.quantile(ours, [0.01, 0.99])
        rank, auc = spearmanr(ours, theirs).statistic, roc_auc(-ours, theirs <= 0)
        print(f"| {name}{' corrected' if lacks else ''} | {len(ours):,} | {rank:.3f} | {auc:.3f} | "
              f"{np.abs(np.maximum(ours, 0) - theirs).mean():.3f} | {low:+.3f} to {high:+.3f} |")


def main(energies: str = "chgnet,m3gnet,tensornet", rows: str = "2000", seed: str = "0") -> None:
    warnings.filterwarnings("ignore")
    potentials = {name: load_potential(name) for name in energies.split(",")}
    crystals_table(potentials)
    data = load("mp20")
    published = [row for row in data.splits["val"] if "e_above_hull" in row.properties]
    if rows != "all":
        chosen = np.random.default_rng(int(seed)).permutation(len(published))[: int(rows)]
        published = [published[i] for i in sorted(chosen)]
    formulas = {row.structure.composition.reduced_formula for row in published}
    known = [row for split in ("train", "val") for row in data.splits[split]
             if row.structure.composition.reduced_formula in formulas]
    known.sort(key=lambda row: len(row.numbers))
    found = {}
    for name, potential in potentials.items():
        points = potential.evaluate([row.structure for row in known], forces=False)
        found[name] = {row.id: point.energy for row, point in zip(known, points, strict=True)}
        failed = sum(point.error is not None for point in points)
        print(f"{name}: {len(known):,} crystals evaluated, {failed} without an energy", file=sys.stderr)
    scales = {name: potential.scale for name, potential in potentials.items()}
    formation_table(published, found, scales)
    hull_table(published, known, found, scales)


if __name__ == "__main__":
    main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))
