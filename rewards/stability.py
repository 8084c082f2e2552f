"""Stability: the energy above the convex hull of known crystals, from a universal potential."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
from pymatgen.core import Structure

from rewards.guards import GUARDS, refuse
from rlgen.counters import count
from rlgen.energies import must_be_known, must_relax
from rlgen.types import Condition, UserError

if TYPE_CHECKING:
    from rlgen.energies import PointResult, Potential
    from rlgen.hull import Hull

Mode = Literal["single_point", "relax"]
#: Largest force (eV/Å) on a crystal that is paid, as it is written or where its relaxation was cut short: real crystals
#: stay below, the walls of a potential's holes are steeper.
WRITTEN_FORCE, LEFT_FORCE = 5.0, 1.0


@dataclass(frozen=True)
class Stability:
    """1 at or below the hull, falling as a half cosine to 0 at `width` eV/atom above it.

    energy: the potential. mode: "single_point" judges the crystal as written, which teaches to write relaxed geometry;
    "relax" lets it relax first (up to `steps` FIRE steps, to `fmax` eV/Å), which forgives it. give_up: what would not
    come to be paid is not relaxed to its end. hull: a file of `python -m rlgen.hull`; None: the hull of the potential's
    scale. cache: look up relaxations of earlier runs and steps, on a CPU each crystal is then relaxed alone
    (docs/energies.md); single points are computed in batches always.

    What the guards (`rewards/guards.py`) refuse is not measured, so that no policy is paid for finding it. floor: a
    crystal further (eV/atom) below the hull is a hole in the potential, not a discovery. closest: least distance of
    two atoms, as a share of the sum of their covalent radii. vacuum: widest gap (Å) around a part of the crystal.
    max_force: largest force (eV/Å) on a crystal that is paid, as written or after relaxing; None: 5 as written, 1 after
    relaxing. Infinite, single points are energies only, in half the time. audit: a second potential with a hull
    of its own; the higher of the two energies above the hull counts, and none if they are more than `tolerance`
    eV/atom apart.
    """

    energy: str = "auto"
    mode: Mode = "single_point"
    fmax: float = 0.1
    steps: int = 50
    give_up: bool = True
    width: float = 0.5
    hull: str | None = None
    floor: float = 0.5
    closest: float = 0.6
    vacuum: float = 3.5
    max_force: float | None = None
    audit: str | None = None
    tolerance: float = 0.4
    cache: bool = True

    name: ClassVar[str] = "stability"
    guards: ClassVar[str] = "guard"  # under which what they refuse is counted
    unit: ClassVar[str] = "eV/atom"
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise UserError(f"stability mode={self.mode}: known are {', '.join(get_args(Mode))}")
        if min(self.width, self.floor, self.fmax, self.tolerance) <= 0 or self.steps < 0:
            raise UserError("stability: width, floor, fmax and tolerance must be above 0, and steps at least 0")
        if not 0 <= self.vacuum <= 20:
            raise UserError(f"stability vacuum={self.vacuum}: must be between 0 and 20 Å")
        must_be_known(self.energy)
        if self.audit is not None:
            must_be_known(self.audit)
        if self.mode == "relax":
            must_relax(self.energy)
        if self.audit is not None and self.audit == self.energy:
            raise UserError(f"stability audit={self.audit}: must be another potential than the one that is audited")

    def warm_up(self) -> None:
        """Load the potential and its hull, and those of the audit."""
        self._judge()
        self._auditor()

    def _judge(self) -> tuple[Potential, Hull]:
        from rlgen.energies import load_potential
        from rlgen.hull import Hull

        potential = load_potential(self.energy)
        return potential, Hull.load(potential.scale, self.hull)

    def _auditor(self) -> tuple[Potential, Hull] | None:
        from rlgen.energies import load_potential
        from rlgen.hull import Hull

        if self.audit is None:
            return None
        potential = load_potential(self.audit)
        return potential, Hull.load(potential.scale)

    def measure(self, structures: Sequence[Structure], conditions: Sequence[Condition]) -> np.ndarray:
        """Energies above the hull (B,) eV/atom, NaN where there is none."""
        return self.measure_with_reasons(structures, conditions)[0]

    def measure_with_reasons(
        self, structures: Sequence[Structure], conditions: Sequence[Condition]
    ) -> tuple[np.ndarray, list[str]]:
        """As `measure`, and for each crystal why it has no value ("" where it has one)."""
        potential, hull = self._judge()
        raw = np.full(len(structures), np.nan)
        # What relaxes is judged by where it ends, whatever its atoms' first distances: what it falls into is looked at.
        as_written = self.mode == "single_point"
        reasons = [refuse(s, self.closest, self.vacuum) if as_written else "" for s in structures]
        sound = [i for i, reason in enumerate(reasons) if not reason]
        judged: dict[int, Structure] = {}
        limit = self._largest_force
        found = self._energies([structures[i] for i in sound], potential, hull)
        for i, (energy, force, structure, error) in zip(sound, found, strict=True):
            reasons[i] = error or ("" if as_written else refuse(structure, self.closest, self.vacuum))
            if not reasons[i]:
                raw[i], reasons[i] = _above(hull, structure, energy, potential.scale)
            if raw[i] < -self.floor:
                raw[i], reasons[i] = np.nan, f"low: {-raw[i]:.2f} eV/atom below the hull"
            elif raw[i] < self.width and force > limit:
                raw[i], reasons[i] = np.nan, f"force: {force:.2f} eV/Å, over {limit:g}"
            judged[i] = structure
        self._hold_audit(raw, reasons, judged)
        for reason in reasons:
            if (kind := reason.partition(":")[0]) in GUARDS:
                count(f"{self.guards}/{kind}")
        return raw, reasons

    @property
    def _largest_force(self) -> float:
        """The limit in eV/Å; a relaxation that converged is below it."""
        if self.mode == "single_point":
            return WRITTEN_FORCE if self.max_force is None else self.max_force
        return max(LEFT_FORCE if self.max_force is None else self.max_force, self.fmax)

    def _energies(
        self, structures: Sequence[Structure], potential: Potential, hull: Hull
    ) -> list[tuple[float, float, Structure, str]]:
        """(energy in eV/atom, largest force in eV/Å, the crystal that has them, why there are none or "") of each."""
        from rlgen.energies import cache, has_forces
        from rlgen.energies.relax import relax

        if self.mode == "relax":
            relaxed = cache.relaxations if self.cache else relax
            wanted = [self._paid_up_to(hull, structure) for structure in structures] if self.give_up else None
            results = relaxed(structures, potential, fmax=self.fmax, steps=self.steps, wanted=wanted)
            if lost := sum(result.given_up for result in results):
                count("given_up", lost)
            return [
                (result.energy, result.max_force, result.structure or structure, result.error or "")
                for structure, result in zip(structures, results, strict=True)
            ]
        points = potential.evaluate(structures, forces=has_forces(potential.name) and self._largest_force < np.inf)
        return [
            (point.energy, _force(point, structure), structure, point.error or "")
            for structure, point in zip(structures, points, strict=True)
        ]

    def _paid_up_to(self, hull: Hull, structure: Structure) -> float:
        """The energy (eV/atom) below which a crystal of this composition is paid; none where there is no hull."""
        from rlgen.hull import HullError

        try:
            return hull.hull_energy(structure.composition) + self.width
        except HullError:
            return -np.inf

    def _hold_audit(self, raw: np.ndarray, reasons: list[str], crystals: Mapping[int, Structure]) -> None:
        """Let a second potential judge what would be paid: changes raw and reasons in place."""
        auditor = self._auditor()
        paid = [i for i in crystals if raw[i] < self.width]
        if auditor is None or not paid:
            return
        potential, hull = auditor
        points = potential.evaluate([crystals[i] for i in paid], forces=False)
        for i, point in zip(paid, points, strict=True):
            other, why = _above(hull, crystals[i], point.energy, potential.scale)
            why = point.error or why
            if why:
                raw[i], reasons[i] = np.nan, f"audit: no energy by {self.audit} ({why})"
            elif abs(other - raw[i]) > self.tolerance:
                reasons[i] = f"audit: {raw[i]:.2f} eV/atom above the hull by {self.energy}, {other:.2f} by {self.audit}"
                raw[i] = np.nan
            else:
                raw[i] = max(raw[i], other)

    def transform(self, raw: np.ndarray) -> np.ndarray:
        """(1 + cos(π x)) / 2 with x = raw / width clipped to [0, 1]; NaN stays NaN."""
        x = np.clip(np.asarray(raw, dtype=np.float64) / self.width, 0.0, 1.0)
        return (1 + np.cos(np.pi * x)) / 2


def _above(hull: Hull, structure: Structure, energy: float, scale: str) -> tuple[float, str]:
    """Energy above the hull (eV/atom), or NaN and why there is none."""
    from rlgen.hull import HullError

    try:
        return hull.e_above_hull(structure.composition, energy, scale=scale), ""
    except HullError as problem:
        return float("nan"), str(problem)


def _force(point: PointResult, structure: Structure) -> float:
    """The largest in eV/Å, over the atoms and, as in a relaxation, the cell: a hole's walls are steep in either."""
    if point.forces is None or point.stress is None:
        return float("nan")
    cell = structure.volume / len(structure) * (point.stress + point.stress.T) / 2
    return float(np.linalg.norm(np.vstack([point.forces, cell]), axis=1).max())
