"""Relaxes samples in the reward pool's workers, and gathers what became of each in one table.

The workers leave their results in the cache and this process reads them there: crystals do not have to travel back,
and a run that was stopped goes on where it was. Workers therefore run on this machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from pymatgen.core import Structure

from rlgen.energies import load_potential, must_relax
from rlgen.energies.cache import relaxations
from rlgen.energies.relax import Relaxation
from rlgen.hull import Hull, HullError
from rlgen.progress import progress_bar
from rlgen.reward_pool import RewardPool
from rlgen.settings import RayConfig
from rlgen.summary import kind
from rlgen.types import Condition, CrystalError, UserError

Mode = Literal["full", "positions", "single_point"]

#: Samples between two moves of the progress bar.
_BATCH = 32


@dataclass(frozen=True)
class Relaxed:
    """A reward whose value is the energy (eV/atom) of the relaxed crystal; it is only measured, never learnt from."""

    energy: str
    mode: Mode = "full"
    symmetry: bool = False
    fmax: float = 0.1
    steps: int = 200
    seconds: float | None = None

    name: ClassVar[str] = "relaxed"
    unit: ClassVar[str] = "eV/atom"
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        must_relax(self.energy)

    def warm_up(self) -> None:
        load_potential(self.energy)

    def relax(self, structures: Sequence[Structure]) -> list[Relaxation]:
        """How each crystal relaxed."""
        return relaxations(
            structures,
            load_potential(self.energy),
            fmax=self.fmax,
            steps=0 if self.mode == "single_point" else self.steps,
            fixed_cell=self.mode == "positions",
            symmetry=self.symmetry,
            seconds=self.seconds,
        )

    def measure(self, structures: Sequence[Structure], conditions: Sequence[Condition]) -> np.ndarray:
        return self.measure_with_reasons(structures, conditions)[0]

    def measure_with_reasons(
        self, structures: Sequence[Structure], conditions: Sequence[Condition]
    ) -> tuple[np.ndarray, list[str]]:
        results = self.relax(structures)
        return np.array([result.energy for result in results]), [result.error or "" for result in results]

    def transform(self, raw: np.ndarray) -> np.ndarray:
        return np.ones_like(raw)


def relax_samples(
    crystals: Sequence[Structure | CrystalError], reward: Relaxed, *, workers: int, progress: bool = True
) -> tuple[list[Structure | CrystalError], dict[str, list[Any]]]:
    """Relaxes B samples. -> (relaxed crystals, or why there is none; columns (B,) of the table, see `_row`)."""
    potential = load_potential(reward.energy)
    try:
        hull = Hull.load(potential.scale)
    except HullError as error:
        raise UserError(str(error)) from error
    relaxed: list[Structure | CrystalError] = []
    rows: list[dict[str, Any]] = []
    # A relaxation takes seconds and large cells many: small chunks and a patient limit, or slow crystals count as lost.
    limit = 900.0 if reward.seconds is None else 4 * reward.seconds + 60
    with (
        RewardPool([reward], reward.name, workers=workers, ray=RayConfig(chunk=4, timeout_s=limit)) as pool,
        progress_bar() as bar,
    ):
        bar.disable = not progress
        task = bar.add_task(f"relaxing with {potential.scale}", total=len(crystals))
        for start in range(0, len(crystals), _BATCH):
            batch = crystals[start : start + _BATCH]
            scored = pool.score(batch)
            for crystal, status, reason in zip(batch, scored.status, scored.reason, strict=True):
                result = _gathered(crystal, status, reason, reward, potential.scale)
                relaxed.append(_crystal(crystal, result))
                rows.append(_row(crystal, result, hull))
            bar.advance(task, len(batch))
    return relaxed, {name: [row[name] for row in rows] for name in rows[0]}


def _gathered(
    crystal: Structure | CrystalError, status: str, reason: str, reward: Relaxed, scale: str
) -> Relaxation:
    """What the workers left in the cache; nothing that failed is tried again in this process, which must not die."""
    if status == "ok" and isinstance(crystal, Structure):
        return reward.relax([crystal])[0]
    nan = float("nan")
    return Relaxation(nan, nan, None, 0, False, nan, scale, reason.removeprefix(f"{reward.name}: "))


def _crystal(crystal: Structure | CrystalError, result: Relaxation) -> Structure | CrystalError:
    if isinstance(crystal, CrystalError):
        return crystal
    return result.structure or CrystalError("geometry", result.error or "could not be relaxed")


def _row(crystal: Structure | CrystalError, result: Relaxation, hull: Hull) -> dict[str, Any]:
    """One sample's columns: energies in eV/atom, max_force in eV/Å, volume_change as a share; NaN where there is none.

    outcome: "converged", "steps" or "time" (what ran out first), or "failed", with the reason.
    """
    nan = float("nan")
    above, reason, change = nan, result.error or "", nan
    if result.structure is not None and isinstance(crystal, Structure):
        change = result.structure.volume / crystal.volume - 1
        try:
            above = hull.e_above_hull(result.structure.composition, result.energy, scale=result.scale)
        except HullError as error:
            reason = f"hull: {error}"
    outcome = "failed" if result.error else "time" if result.timed_out else "converged" if result.converged else "steps"
    return {
        "outcome": outcome,
        "reason": reason,
        "energy": result.energy,
        "energy_written": result.initial_energy,
        "e_above_hull": above,
        "steps": result.steps,
        "max_force": result.max_force,
        "converged": result.converged,
        "volume_change": change,
        "scale": result.scale,
    }


def summary(columns: dict[str, list[Any]]) -> str:
    """A few plain lines: how many relaxed, what the others ran into, and how far they moved."""
    table = pd.DataFrame(columns)
    outcomes = Counter(table["outcome"])
    lines = [
        f"{len(table)} samples: {outcomes['converged']} converged, {outcomes['steps']} ran out of steps, "
        f"{outcomes['time']} of time, {outcomes['failed']} failed"
    ]
    kinds = Counter(kind(reason) for reason in table.loc[table["outcome"] == "failed", "reason"])
    lines += [f"  {n} {what}" for what, n in kinds.most_common()]
    done = table[table["outcome"] != "failed"]
    if len(done):
        lowered = (done["energy_written"] - done["energy"]).median() * 1000
        lines.append(
            f"energy above hull, median {done['e_above_hull'].median():.3f} eV/atom; energy lowered by "
            f"{lowered:.0f} meV/atom, volume changed by {done['volume_change'].abs().median():.1%}, "
            f"{done['steps'].median():.0f} steps (medians)"
        )
    return "\n".join(lines)
