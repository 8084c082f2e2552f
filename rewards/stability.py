"""Stability: the energy above the convex hull of known crystals, from a universal potential."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np
from pymatgen.core import Structure

from rlgen.types import Condition, UserError

if TYPE_CHECKING:
    from rlgen.energies import Potential

Mode = Literal["single_point", "relax"]


@dataclass(frozen=True)
class Stability:
    """1 at or below the hull, falling as a half cosine to 0 at `width` eV/atom above it.

    energy: the potential (auto, m3gnet, chgnet). mode: "single_point" judges the crystal as written, which teaches to
    write relaxed geometry; "relax" lets it relax first (up to `steps` FIRE steps, to `fmax` eV/Å), which forgives it.
    cache: look up results of earlier runs and steps; each crystal is then computed alone on a CPU (docs/energies.md).
    floor: more than this far (eV/atom) below the hull is a hole in the potential, not a discovery: not measured, so
    that no policy is paid for finding it.
    """

    energy: str = "auto"
    mode: Mode = "single_point"
    fmax: float = 0.1
    steps: int = 50
    width: float = 0.5
    floor: float = 0.5
    cache: bool = True

    name: ClassVar[str] = "stability"
    unit: ClassVar[str] = "eV/atom"
    per_sample: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise UserError(f"stability mode={self.mode}: known are {', '.join(get_args(Mode))}")
        if min(self.width, self.floor, self.fmax) <= 0 or self.steps < 0:
            raise UserError("stability: width, floor and fmax must be above 0, and steps at least 0")

    def warm_up(self) -> None:
        """Load the potential and its hull."""
        from rlgen.energies import load_potential
        from rlgen.hull import Hull

        Hull.load(load_potential(self.energy).scale)

    def measure(self, structures: Sequence[Structure], conditions: Sequence[Condition]) -> np.ndarray:
        """Energies above the hull (B,) eV/atom, NaN where there is none."""
        return self.measure_with_reasons(structures, conditions)[0]

    def measure_with_reasons(
        self, structures: Sequence[Structure], conditions: Sequence[Condition]
    ) -> tuple[np.ndarray, list[str]]:
        """As `measure`, and for each crystal why it has no value ("" where it has one)."""
        from rlgen.energies import load_potential
        from rlgen.hull import Hull, HullError

        potential = load_potential(self.energy)
        hull = Hull.load(potential.scale)
        raw = np.full(len(structures), np.nan)
        reasons = [""] * len(structures)
        for i, (energy, error) in enumerate(self._energies(structures, potential)):
            if error:
                reasons[i] = error
                continue
            try:
                above = hull.e_above_hull(structures[i].composition, energy, scale=potential.scale)
            except HullError as problem:
                reasons[i] = str(problem)
                continue
            if above < -self.floor:
                reasons[i] = f"unphysical: {-above:.2f} eV/atom below the hull"
            else:
                raw[i] = above
        return raw, reasons

    def _energies(self, structures: Sequence[Structure], potential: Potential) -> list[tuple[float, str]]:
        """(energy in eV/atom, why there is none or "") of each crystal."""
        from rlgen.energies import cache
        from rlgen.energies.relax import relax

        if self.mode == "relax":
            relaxed = cache.relaxations if self.cache else relax
            results = relaxed(structures, potential, fmax=self.fmax, steps=self.steps)
            return [(result.energy, result.error or "") for result in results]
        points = cache.single_points(structures, potential) if self.cache else potential.evaluate(structures, False)
        return [(point.energy, point.error or "") for point in points]

    def transform(self, raw: np.ndarray) -> np.ndarray:
        """(1 + cos(π x)) / 2 with x = raw / width clipped to [0, 1]; NaN stays NaN."""
        x = np.clip(np.asarray(raw, dtype=np.float64) / self.width, 0.0, 1.0)
        return (1 + np.cos(np.pi * x)) / 2
