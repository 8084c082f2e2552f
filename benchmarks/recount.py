"""What `rlgen.evaluate` says of samples, counted again without rlgen's metrics, relaxation, hull or index.

    python -m rlgen.evaluate input=samples energy=chgnet data=mp20 relax_steps=100 output=judged
    python benchmarks/recount.py input=samples judged=judged/judged_0.parquet n=200 steps=100

Plain pymatgen and CHGNet's own StructOptimizer (ASE's FIRE) on the first n samples: atoms at least 0.5 Å apart; the
first of their kind, and no crystal of MP-20, by StructureMatcher.fit; space group by spglib (0.1 Å); energy above
pymatgen's PhaseDiagram of the entries in CHGNet's hull file. Prints both counts, and how many verdicts differ. rlgen's
guards give no energy to some crystals that are counted here.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict

import numpy as np
import pandas as pd
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
from rich.progress import track

from rlgen import data, samples

#: S.U.N. and metastable: eV/atom.
METASTABLE = 0.1
MATCHER = StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5)


def apart(structure: Structure) -> bool:
    distances = structure.distance_matrix + np.diag(np.full(len(structure), np.inf))
    return structure.volume >= 0.1 and distances.min() >= 0.5


def known_crystals() -> dict[str, list[Structure]]:
    found = defaultdict(list)
    for record in data.load("mp20"):
        found[record.structure.reduced_formula].append(record.structure)
    return found


def above_hull(structure: Structure, energy: float, entries: list[PDEntry]) -> float:
    """Energy (eV/atom) above the hull of all entries within the crystal's chemical system."""
    elements = set(structure.composition.elements)
    diagram = PhaseDiagram([entry for entry in entries if set(entry.composition.elements) <= elements])
    return diagram.get_e_above_hull(PDEntry(structure.composition, energy * len(structure)), allow_negative=True)


def main() -> None:
    options = {"n": "200", "steps": "100", "hull": "rlgen/assets/hull_chgnet-0.3.0.parquet"}
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    warnings.simplefilter("ignore")
    from chgnet.model import StructOptimizer

    n = int(options["n"])
    crystals = samples.read(options["input"]).crystals[:n]
    judged = pd.read_parquet(options["judged"]).head(n)
    table = pd.read_parquet(options["hull"])
    entries = [
        PDEntry(Composition(formula), energy * Composition(formula).num_atoms)
        for formula, energy in zip(table["reduced_formula"], table["energy_per_atom"], strict=True)
    ]
    known, optimizer = known_crystals(), StructOptimizer()
    kept: list[Structure] = []
    rows = []
    for crystal in track(crystals, "recounting"):
        row = {"apart": False, "unique": False, "novel": False, "metastable": False, "sun": False, "space_group": 0,
               "e_above_hull": np.nan}
        if isinstance(crystal, Structure) and apart(crystal):
            new = not any(MATCHER.fit(crystal, other) for other in kept)
            kept += [crystal] if new else []
            found = optimizer.relax(crystal, fmax=0.1, steps=int(options["steps"]), verbose=False)
            energy = float(found["trajectory"].energies[-1]) / len(crystal)
            row |= {
                "apart": True, "unique": new,
                "novel": not any(MATCHER.fit(crystal, other) for other in known[crystal.reduced_formula]),
                "space_group": SpacegroupAnalyzer(crystal, symprec=0.1).get_space_group_number(),
                "e_above_hull": above_hull(crystal, energy, entries),
            }  # fmt: skip
            row["metastable"] = row["e_above_hull"] <= METASTABLE
            row["sun"] = row["unique"] and row["novel"] and row["metastable"]
        rows.append(row)
    mine = pd.DataFrame(rows)
    judged["metastable"] = judged["e_above_hull"] <= METASTABLE
    judged["space_group"] = judged["space_group"].fillna(0)
    print(f"| of the first {len(mine)} samples | rlgen | recount | differ |\n|---|---:|---:|---:|")
    for name in ("apart", "unique", "novel", "metastable", "sun"):
        ours, theirs = judged[name].to_numpy(bool), mine[name].to_numpy(bool)
        print(f"| {name} | {ours.sum()} | {theirs.sum()} | {(ours != theirs).sum()} |")
    differ = (judged["space_group"].to_numpy(int) != mine["space_group"].to_numpy(int)).sum()
    print(f"| space group | | | {differ} |")
    both = judged["e_above_hull"].notna().to_numpy() & mine["e_above_hull"].notna().to_numpy()
    gap = np.abs(judged["e_above_hull"].to_numpy(float) - mine["e_above_hull"].to_numpy(float))[both]
    print(f"\nenergy above the hull: median difference {1000 * np.median(gap):.1f} meV/atom, 90 % below "
          f"{1000 * np.quantile(gap, 0.9):.1f}; {int(judged['e_above_hull'].isna().sum())} have none by rlgen "
          f"(guards, failures)")


if __name__ == "__main__":
    main()
