"""Judges samples: valid, unique, novel, stable, and how diverse, each with its interval, over all samples drawn.

Energies and novelty run in the reward pool, so that a crystal that kills its worker costs that crystal and no more.
Novelty, uniqueness and diversity speak of the crystals as written, stability of the relaxed ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pymatgen.core import Structure

from rlgen import metrics
from rlgen.metrics import Estimate
from rlgen.types import CrystalError

if TYPE_CHECKING:
    from rich.table import Table

#: Energies above the hull (eV/atom) up to which a crystal counts as metastable, and as stable.
METASTABLE, STABLE = 0.1, 0.0
#: Atoms of a conventional cell per atom of the primitive one, by the second letter of a Pearson symbol.
_CENTRING = {"P": 1, "A": 2, "B": 2, "C": 2, "S": 2, "I": 2, "R": 3, "F": 4}
#: More elements of equal count than this have too many orders for a prototype's name to be made the same for all.
_LARGEST_ORDER = 6

#: What the report shows, in order: key -> (label, kind); kinds: share, number (spread or size), energy (eV/atom).
ROWS: dict[str, tuple[str, str]] = {
    "valid": ("valid", "share"),
    "unique": ("unique", "share"),
    "novel": ("novel", "share"),
    "metastable": ("metastable (≤ 0.1 eV/atom)", "share"),
    "stable": ("stable (≤ 0 eV/atom)", "share"),
    "sun": ("S.U.N. (≤ 0.1 eV/atom)", "share"),
    "sun_strict": ("S.U.N. (≤ 0 eV/atom)", "share"),
    "e_above_hull_written": ("energy above hull as written, median (eV/atom)", "energy"),
    "e_above_hull": ("energy above hull relaxed, median (eV/atom)", "energy"),
    "space_groups": ("space groups, exp-entropy", "number"),
    "elements": ("elements, exp-entropy", "number"),
    "prototypes": ("prototypes, exp-entropy", "number"),
    "n_atoms": ("atoms per primitive cell, mean", "number"),
}


@dataclass
class Evaluation:
    """B judged samples.

    samples: one row each, with `valid`, `unique`, `novel`, `e_above_hull` and `e_above_hull_written` (eV/atom, NaN where
    not measured), `space_group`, `prototype`, `n_atoms`, `formula`, `status`, `reason`. summary: an estimate for every
    key of `ROWS`. failures: how many samples were lost, by kind. notes: what judged, and how.
    """

    samples: pd.DataFrame
    summary: dict[str, Estimate]
    failures: dict[str, int]
    notes: dict[str, Any]


def evaluate(
    crystals: Sequence[Structure | CrystalError],
    *,
    energy: str,
    reference: str,
    relax: bool = True,
    fmax: float = 0.1,
    steps: int = 50,
    workers: int = 0,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Judge B samples with a potential and its hull, against a novelty reference.

    energy: the judging potential, which should not be the one that rewarded. relax: to forces below fmax (eV/Å) in at
    most `steps` FIRE steps; without it the energies as written decide. seed: of the bootstrap.
    """
    breakdown, notes = _score(crystals, energy, reference, relax, fmax, steps, workers, progress)
    table = _describe(crystals, breakdown)
    table["unique"] = _first_of_duplicates(crystals, table["valid"].to_numpy())
    notes |= {"samples": len(crystals), "relaxed": relax, "fmax": fmax, "steps": steps}
    return Evaluation(table, summarise(table, seed), failures(table), notes)


def summarise(samples: pd.DataFrame, seed: int = 0) -> dict[str, Estimate]:
    """Estimates of `ROWS` from judged samples. Diversity and energies are of the valid samples, shares of all."""
    rng = np.random.default_rng(seed)
    valid, unique, novel = (samples[name].to_numpy(bool) for name in ("valid", "unique", "novel"))
    above = samples["e_above_hull"].to_numpy(float)
    metastable, stable = above <= METASTABLE, above <= STABLE  # NaN is neither
    flags = {
        "valid": valid,
        "unique": unique,
        "novel": novel,
        "metastable": metastable,
        "stable": stable,
        "sun": metastable & unique & novel,
        "sun_strict": stable & unique & novel,
    }
    summary = {name: metrics.share(values, rng) for name, values in flags.items()}
    for name in ("e_above_hull_written", "e_above_hull"):
        summary[name] = metrics.median(samples[name].to_numpy(float), rng)
    elements = [tuple(one.split("-")) if isinstance(one, str) else () for one in samples["chemical_system"]]
    summary["space_groups"] = metrics.diversity(_labels(samples["space_group"]), rng)
    summary["elements"] = metrics.diversity(elements, rng)
    summary["prototypes"] = metrics.diversity(_labels(samples["prototype"]), rng)
    summary["n_atoms"] = metrics.mean(samples["n_atoms"].to_numpy(float), rng)
    return summary


def failures(samples: pd.DataFrame) -> dict[str, int]:
    """Samples without a full judgement by kind, the most frequent first: "invalid: geometry", "failed: stability"."""
    lost = samples[samples["status"] != "ok"]
    kinds = Counter(f"{row.status}: {row.reason.split(':')[0]}" for row in lost.itertuples())
    return dict(kinds.most_common())


@dataclass(frozen=True)
class Site:
    """How a crystal is built, by its protostructure label: None where its symmetry could not be determined."""

    space_group: int | None
    prototype: str | None
    n_atoms: int


def describe(structure: Structure) -> Site:
    """Space group, prototype without chemistry, atoms of the primitive cell, from one search for symmetry.

    All three are read from the label "AB_cF8_225_a_b:Cl-Na", in which a crystal and its mirror image are one.
    """
    from pymatgen.analysis.prototypes import get_prototype_from_protostructure

    from rlgen.reference import UNLABELLED, protostructure_label

    label = protostructure_label(structure)
    if label.endswith(UNLABELLED):
        return Site(None, None, len(structure))
    plain = label.split(":")[0]
    formula, pearson, number = plain.split("_")[:3]
    counts = Counter(re.findall(r"[A-Z](\d*)", formula))
    prototype = get_prototype_from_protostructure(label) if max(counts.values()) <= _LARGEST_ORDER else plain
    return Site(int(number), prototype, int(pearson[2:]) // _CENTRING[pearson[1]])
