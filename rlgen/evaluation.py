"""Judges samples: sound, unique, novel, stable, and how diverse, each with its interval, over all samples drawn.

Energies and novelty run in the reward pool, so that a crystal that kills its worker costs that crystal and no more.
Novelty, uniqueness and diversity speak of the crystals as written, stability of the relaxed ones. docs/evaluation.md
has the definition and the source of every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from pymatgen.core import Structure

from rewards.novelty import Novelty
from rewards.stability import Stability
from rlgen import checks
from rlgen.coverage import Real, coverage
from rlgen.metrics import Estimate
from rlgen.protostructure import read_label
from rlgen.reference import Reference, Tolerance, duplicate_groups, protostructure_label
from rlgen.report import as_dict, as_markdown, table
from rlgen.settings import MetricsConfig, RayConfig
from rlgen.summary import FIELD, failures, flags, summarise
from rlgen.types import Condition, CrystalError, UserError

if TYPE_CHECKING:
    from rewards.base import Reward

__all__ = ["Evaluation", "as_dict", "as_markdown", "describe", "evaluate", "failures", "summarise", "table"]

#: A relaxation takes seconds and large cells many: small chunks and a patient limit, or slow crystals count as lost.
JUDGING = RayConfig(chunk=4, timeout_s=900.0)
#: Samples between two moves of the progress bar.
_BATCH = 64


@dataclass
class Evaluation:
    """B judged samples.

    samples: one row each: `formula`, `status`, `reason`, `valid`, `apart`, `radii_apart`, `neutral`, `unique`, `novel`,
    `sun` (metastable too), `e_above_hull` that decides and `e_above_hull_written` (eV/atom, NaN where not measured),
    `displacement` (Å) from where it relaxes to, `density` (g/cm³), `n_elements`, `space_group`, `prototype`, `n_atoms`
    of the primitive cell, `chemical_system`, and, where there are real crystals, whether one is near (`covered`).
    summary: an estimate for keys of `rlgen.report.ROWS`. failures: samples lost, by kind. notes: what judged, and how.
    """

    samples: pd.DataFrame
    summary: dict[str, Estimate]
    failures: dict[str, int]
    notes: dict[str, Any]


def evaluate(
    drawn: Mapping[str, Sequence[Structure | CrystalError]],
    *,
    energy: str,
    reference: str,
    hull: str | None = None,
    relax: bool = True,
    fmax: float = 0.1,
    steps: int = 50,
    real: str | None = None,
    settings: MetricsConfig = FIELD,
    workers: int = 0,
    ray: RayConfig = JUDGING,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Evaluation]:
    """Judge samples, (B,) by the name of what drew them, with a potential and its hull, against a novelty reference.

    energy: the judging potential, which should not be the one that rewarded. hull: its hull's file, None: the one of
    its scale. relax: to forces below fmax (eV/Å) in at most `steps` FIRE steps; without it the energies as written
    decide. real: crystals whose distributions the samples are compared with (`Real.load`); None: they are not.
    settings: what counts as what. workers, ray: as of `RewardPool`; all that is judged shares it. seed: of the
    bootstrap.
    """
    for name, crystals in drawn.items():
        if not crystals:
            raise UserError(f"{name}: there are no samples to evaluate")
    tolerance = Tolerance(settings.ltol, settings.stol, settings.angle_tol)
    notes = _judges(energy, hull, reference, tolerance)
    notes |= {"relaxed": relax, "fmax": fmax, "steps": steps, "seed": seed, "definitions": vars(settings)}
    others = None if real is None else Real.load(real)
    checked = {name: _checked(crystals, settings) for name, crystals in drawn.items()}
    # Energies as written are shown, not paid for: they are measured however close atoms are and strong the forces.
    strongest = np.inf if relax else None
    written = WrittenStability(energy=energy, hull=hull, mode="single_point", closest=0.0, max_force=strongest)
    rewards: list[Reward] = [Novelty(reference, tolerance.ltol, tolerance.stol, tolerance.angle_tol), written]
    if relax:
        rewards.append(Stability(energy=energy, hull=hull, mode="relax", fmax=fmax, steps=steps, give_up=False))
        rewards.append(Displacement(energy, fmax, steps))
    found = {}
    for name, scored in _score(drawn, rewards, workers, ray, progress):
        crystals = drawn[name]
        judged = pd.DataFrame(
            {
                "formula": [c.composition.reduced_formula if isinstance(c, Structure) else None for c in crystals],
                "status": scored["status"],
                "reason": scored["reason"],
                "valid": scored["status"] != "invalid",
                **checked[name],
                "novel": scored["novelty"] == 1,
                "e_above_hull": scored["stability"] if relax else scored["stability_written"],
                "e_above_hull_written": scored["stability_written"],
                "displacement": scored["displacement"] if relax else np.nan,
            }
        )
        valid = np.flatnonzero(judged["valid"])
        chosen = [c for c, keep in zip(crystals, judged["valid"], strict=True) if keep and isinstance(c, Structure)]
        _describe_all(judged, valid, chosen, tolerance)
        judged["sun"] = flags(judged, settings)["sun"]
        summary, said = summarise(judged, seed, settings), notes | {"samples": len(crystals)}
        if others is not None:
            near, unlike = coverage(chosen, others, settings, progress)
            judged["covered"] = False
            judged.loc[valid[near.covered], "covered"] = True
            said |= {"real": others.name, "real_size": len(others.structures), "without_fingerprint": unlike}
            summary |= near.estimates(judged, others, np.random.default_rng([seed, 1]))
        found[name] = Evaluation(judged, summary, failures(judged), said)
    return found


def _checked(crystals: Sequence[Structure | CrystalError], settings: MetricsConfig) -> dict[str, list[bool]]:
    """Which samples pass each of the field's checks, columns (B,); what cannot be decoded passes none."""

    def passes(check: Callable[[Structure], bool]) -> list[bool]:
        return [isinstance(crystal, Structure) and check(crystal) for crystal in crystals]

    apart = passes(lambda s: checks.atoms_apart(s, settings.min_distance, settings.min_volume))
    return {
        "apart": apart,
        "radii_apart": [
            ok and isinstance(crystal, Structure) and checks.radii_apart(crystal, settings.radii)
            for ok, crystal in zip(apart, crystals, strict=True)
        ],
        "neutral": passes(lambda s: checks.charge_neutral(s, settings.oxidation_states)),
    }


def _describe_all(judged: pd.DataFrame, valid: np.ndarray, chosen: Sequence[Structure], tolerance: Tolerance) -> None:
    """Add what can be said of the valid crystals alone; of other samples it is missing."""
    groups = duplicate_groups(chosen, tolerance=tolerance)
    judged["unique"] = False
    judged.loc[valid[np.unique(groups, return_index=True)[1]], "unique"] = True  # the first of each group
    sites = [describe(structure) for structure in chosen]
    judged["space_group"] = pd.Series([site.space_group for site in sites], valid, dtype="Int64")
    judged["prototype"] = pd.Series([site.prototype for site in sites], valid, dtype="string")
    judged["n_atoms"] = pd.Series([site.n_atoms for site in sites], valid, dtype="Int64")
    judged["chemical_system"] = pd.Series([structure.chemical_system for structure in chosen], valid, dtype="string")
    judged["density"] = pd.Series([float(structure.density) for structure in chosen], valid, dtype=float)
    judged["n_elements"] = pd.Series([len(structure.composition) for structure in chosen], valid, dtype="Int64")


@dataclass(frozen=True)
class WrittenStability(Stability):
    """Stability of the crystal as written, beside that of the relaxed one in the same pool."""

    name: ClassVar[str] = "stability_written"


@dataclass(frozen=True)
class Displacement:
    """How far (Å) a crystal's atoms are from where they relax to; the relaxations are those that `Stability` left in
    the cache."""

    energy: str
    fmax: float
    steps: int

    name: ClassVar[str] = "displacement"
    unit: ClassVar[str] = "Å"
    per_sample: ClassVar[bool] = True

    def measure(self, structures: Sequence[Structure], conditions: Sequence[Condition]) -> np.ndarray:
        return self.measure_with_reasons(structures, conditions)[0]

    def measure_with_reasons(
        self, structures: Sequence[Structure], conditions: Sequence[Condition]
    ) -> tuple[np.ndarray, list[str]]:
        """Raw values (B,), and why one is NaN ("" where it is not)."""
        from rlgen.energies import cache, load_potential

        results = cache.relaxations(structures, load_potential(self.energy), fmax=self.fmax, steps=self.steps)
        raw = [
            np.nan if result.structure is None else checks.displacement(structure, result.structure)
            for structure, result in zip(structures, results, strict=True)
        ]
        return np.array(raw), [result.error or "" for result in results]

    def transform(self, raw: np.ndarray) -> np.ndarray:
        return np.exp(-np.asarray(raw, dtype=float))


def _judges(energy: str, hull: str | None, reference: str, tolerance: Tolerance) -> dict[str, Any]:
    """What judges, in words; a wrong name is found here, before any work is done."""
    from rlgen.energies import load_potential
    from rlgen.hull import Hull

    scale = load_potential(energy).scale
    found = str(Hull.load(scale, hull))
    known = Reference.load(reference, tolerance).method
    return {"scale": scale, "hull": found, "reference": reference, "novelty": known, "unique": str(tolerance)}


def _score(
    drawn: Mapping[str, Sequence[Structure | CrystalError]], rewards: list[Reward], workers: int, ray: RayConfig,
    progress: bool,
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:  # fmt: skip
    """Of each name in turn: raw values (B,) by the reward's name, with `status` and `reason`."""
    from rich.progress import Progress

    from rlgen.reward_pool import RewardPool

    expression = "*".join(reward.name for reward in rewards)
    with RewardPool(rewards, expression, workers=workers, ray=ray) as pool:
        for name, crystals in drawn.items():
            if progress:
                print(f"judging {len(crystals)} crystals: {name}")
            parts = []
            with Progress(disable=not progress, transient=True) as bar:
                task = bar.add_task("judging", total=len(crystals))
                for start in range(0, len(crystals), _BATCH):
                    batch = crystals[start : start + _BATCH]
                    parts.append(pool.score(batch))
                    bar.advance(task, len(batch))
            columns: dict[str, np.ndarray] = {
                reward: np.concatenate([part.raw[:, k] for part in parts]) for k, reward in enumerate(pool.names)
            }
            columns["status"] = np.concatenate([part.status for part in parts])
            columns["reason"] = np.array([reason for part in parts for reason in part.reason], dtype=object)
            yield name, columns


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
