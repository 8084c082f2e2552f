"""Judges samples: valid, unique, novel, stable, and how diverse, each with its interval, over all samples drawn.

Energies and novelty run in the reward pool, so that a crystal that kills its worker costs that crystal and no more.
Novelty, uniqueness and diversity speak of the crystals as written, stability of the relaxed ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from pymatgen.core import Structure

from rewards.novelty import Novelty
from rewards.stability import Stability
from rlgen import metrics
from rlgen.metrics import Estimate
from rlgen.protostructure import read_label
from rlgen.reference import Reference, duplicate_groups, protostructure_label
from rlgen.report import as_dict, as_markdown, table
from rlgen.settings import RayConfig
from rlgen.types import CrystalError, UserError

if TYPE_CHECKING:
    from rewards.base import Reward

__all__ = ["Evaluation", "as_dict", "as_markdown", "describe", "evaluate", "failures", "summarise", "table"]

#: Energies above the hull (eV/atom) up to which a crystal counts as metastable, and as stable.
METASTABLE, STABLE = 0.1, 0.0
#: A relaxation takes seconds and large cells many: small chunks and a patient limit, or slow crystals count as lost.
JUDGING = RayConfig(chunk=4, timeout_s=900.0)
#: Samples between two moves of the progress bar.
_BATCH = 64


@dataclass
class Evaluation:
    """B judged samples.

    samples: one row each: `formula`, `status`, `reason`, `valid`, `unique`, `novel`, `e_above_hull` that decides and
    `e_above_hull_written` (eV/atom, NaN where not measured), `space_group`, `prototype`, `n_atoms` of the primitive
    cell, `chemical_system`. summary: an estimate for every key of `rlgen.report.ROWS`. failures: how many samples were
    lost, by kind. notes: what judged, and how.
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
    hull: str | None = None,
    relax: bool = True,
    fmax: float = 0.1,
    steps: int = 50,
    workers: int = 0,
    ray: RayConfig = JUDGING,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Judge B samples with a potential and its hull, against a novelty reference.

    energy: the judging potential, which should not be the one that rewarded. hull: its hull's file, None: the one of
    its scale. relax: to forces below fmax (eV/Å) in at most `steps` FIRE steps; without it the energies as written
    decide. workers, ray: as of `RewardPool`. seed: of the bootstrap.
    """
    if not crystals:
        raise UserError("there are no samples to evaluate")
    notes = _judges(energy, hull, reference)
    notes |= {"samples": len(crystals), "relaxed": relax, "fmax": fmax, "steps": steps}
    # Energies as written are shown, not paid for: they are measured however close atoms are.
    written = WrittenStability(energy=energy, hull=hull, mode="single_point", closest=0.0)
    rewards: list[Reward] = [Novelty(reference), written]
    if relax:
        rewards.append(Stability(energy=energy, hull=hull, mode="relax", fmax=fmax, steps=steps))
    scored = _score(crystals, rewards, workers, ray, progress)
    scored["e_above_hull"] = scored["stability"] if relax else scored["stability_written"]
    judged = pd.DataFrame(
        {
            "formula": [c.composition.reduced_formula if isinstance(c, Structure) else None for c in crystals],
            "status": scored["status"],
            "reason": scored["reason"],
            "valid": scored["status"] != "invalid",
            "novel": scored["novelty"] == 1,
            "e_above_hull": scored["e_above_hull"],
            "e_above_hull_written": scored["stability_written"],
        }
    )
    valid = np.flatnonzero(judged["valid"])
    chosen = [c for c, keep in zip(crystals, judged["valid"], strict=True) if keep and isinstance(c, Structure)]
    groups = duplicate_groups(chosen)
    judged["unique"] = False
    judged.loc[valid[np.unique(groups, return_index=True)[1]], "unique"] = True  # the first of each group
    sites = [describe(structure) for structure in chosen]
    judged["space_group"] = pd.Series([site.space_group for site in sites], valid, dtype="Int64")
    judged["prototype"] = pd.Series([site.prototype for site in sites], valid, dtype="string")
    judged["n_atoms"] = pd.Series([site.n_atoms for site in sites], valid, dtype="Int64")
    judged["chemical_system"] = pd.Series([structure.chemical_system for structure in chosen], valid, dtype="string")
    return Evaluation(judged, summarise(judged, seed), failures(judged), notes)


@dataclass(frozen=True)
class WrittenStability(Stability):
    """Stability of the crystal as written, beside that of the relaxed one in the same pool."""

    name: ClassVar[str] = "stability_written"


def _judges(energy: str, hull: str | None, reference: str) -> dict[str, Any]:
    """What judges, in words; a wrong name is found here, before any work is done."""
    from rlgen.energies import load_potential
    from rlgen.hull import Hull

    scale = load_potential(energy).scale
    found = str(Hull.load(scale, hull))
    return {"scale": scale, "hull": found, "reference": reference, "novelty": Reference.load(reference).method}


def _score(
    crystals: Sequence[Structure | CrystalError], rewards: list[Reward], workers: int, ray: RayConfig, progress: bool
) -> dict[str, np.ndarray]:
    """Raw values (B,) by the reward's name, with `status` and `reason`."""
    from rich.progress import Progress

    from rlgen.reward_pool import RewardPool

    expression = "*".join(reward.name for reward in rewards)
    with (
        RewardPool(rewards, expression, workers=workers, ray=ray) as pool,
        Progress(disable=not progress, transient=True) as bar,
    ):
        task = bar.add_task("judging", total=len(crystals))
        parts = []
        for start in range(0, len(crystals), _BATCH):
            batch = crystals[start : start + _BATCH]
            parts.append(pool.score(batch, [{}] * len(batch)))
            bar.advance(task, len(batch))
    columns: dict[str, np.ndarray] = {
        name: np.concatenate([part.raw[:, k] for part in parts]) for k, name in enumerate(pool.names)
    }
    columns["status"] = np.concatenate([part.status for part in parts])
    columns["reason"] = np.array([reason for part in parts for reason in part.reason], dtype=object)
    return columns


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
    """Samples without a full judgement by kind, the most frequent first: "invalid: geometry", "stability: overlap"."""
    kinds: Counter[str] = Counter()
    for status, reason in zip(samples["status"], samples["reason"], strict=True):
        if status == "invalid":
            kinds[f"invalid: {kind(reason)}"] += 1
        elif status == "failed":
            for one in reason.split("; "):  # several rewards may have failed
                reward, _, why = one.partition(": ")
                kinds[f"{reward}: {kind(why)}"] += 1
    return dict(kinds.most_common())


def kind(reason: str) -> str:
    """A reason without its details: what stands before the first colon, number or comma."""
    return re.split(r"[:,]|\s*-?\d", reason)[0].strip() or "other"


def _labels(column: Iterable[Any]) -> list[tuple[Any, ...]]:
    """One label for each sample, none where it is missing."""
    return [() if pd.isna(label) else (label,) for label in column]


@dataclass(frozen=True)
class Site:
    """How a crystal is built, by its protostructure label: None where its symmetry could not be determined."""

    space_group: int | None
    prototype: str | None
    n_atoms: int


def describe(structure: Structure) -> Site:
    """Space group, prototype without chemistry, atoms of the primitive cell, from one search for symmetry.

    A crystal and its mirror image are one.
    """
    found = read_label(protostructure_label(structure))
    if found is None:
        return Site(None, None, len(structure))
    return Site(found.space_group, found.prototype, found.n_atoms)
