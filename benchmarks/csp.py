"""Crystal structure prediction on MP-20's test set, as the field measures it: match rate and RMSE with 1 and k samples.

    python benchmarks/csp.py --n 1000 --samples 20

The policy is asked for the composition of each true primitive cell (formula and number of atoms). A formula is matched
if StructureMatcher (ltol 0.3, stol 0.5, angle 10) takes any of its samples for the true structure; RMSE is the mean,
over the matched, of the least rms displacement, divided by the cube root of the volume per atom (Jiao et al., arXiv
2309.04475). All formulas drawn are in the denominator, also those that the policy cannot be asked for. With --energy
the samples of a formula are ranked by the energies of a potential, unrelaxed, too, and the lowest alone is compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from policies.model import CrystalPolicy
from rlgen import data
from rlgen.drawing import answering, drawn
from rlgen.reward_pool import RewardPool
from rlgen.settings import RayConfig
from rlgen.types import Condition, UserError

LTOL, STOL, ANGLE_TOL = 0.3, 0.5, 10.0


@dataclass(frozen=True)
class Match:
    """Rms displacement of a sample from the true structure, its condition's `truth`; measured by the pool, as
    StructureMatcher may hang."""

    name: ClassVar[str] = "match"
    unit: ClassVar[str] = "(V/N)^(1/3)"
    per_sample: ClassVar[bool] = True

    def measure(self, structures: Sequence[Structure], conditions: Sequence[Condition]) -> np.ndarray:
        matcher = StructureMatcher(ltol=LTOL, stol=STOL, angle_tol=ANGLE_TOL)
        found = []
        for structure, condition in zip(structures, conditions, strict=True):
            # As the field does: the generated structure first, which decides whose volume is the norm.
            distance = matcher.get_rms_dist(structure, condition["truth"])
            found.append(np.nan if distance is None else distance[0])
        return np.array(found)

    def transform(self, raw: np.ndarray) -> np.ndarray:
        return np.exp(-raw)


@dataclass(frozen=True)
class Point:
    """Energy (eV/atom) as written."""

    energy: str

    name: ClassVar[str] = "point"
    unit: ClassVar[str] = "eV/atom"
    per_sample: ClassVar[bool] = True

    def measure(self, structures: Sequence[Structure], conditions: Sequence[Condition]) -> np.ndarray:
        from rlgen.energies import load_potential

        return np.array([p.energy for p in load_potential(self.energy).evaluate(structures, forces=False)])

    def transform(self, raw: np.ndarray) -> np.ndarray:
        return np.ones_like(raw)


def figures(rms: np.ndarray) -> tuple[float, float, float]:
    """Match rate, its standard error, and RMSE of rms displacements (formulas, samples), NaN where nothing matches."""
    best = np.where(np.isnan(rms), np.inf, rms).min(1)
    hit = np.isfinite(best)
    rate = float(hit.mean())
    return rate, float(np.sqrt(rate * (1 - rate) / len(hit))), float(best[hit].mean()) if hit.any() else float("nan")


def _table(values: np.ndarray, shape: tuple[int, int], missing: float) -> np.ndarray:
    """Values of the formulas that were written; the last rows, of those that were not, hold what is missing."""
    table = np.full(shape, missing)
    table.flat[: len(values)] = values
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=1000, help="formulas, drawn at random from the split")
    parser.add_argument("--samples", type=int, default=20, help="for each")
    parser.add_argument("--policy", default="shipped")
    parser.add_argument("--data", default="mp20")
    parser.add_argument("--split", default="test")
    parser.add_argument("--energy", default=None, help="a potential to rank by, such as m3gnet")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rng = np.random.default_rng(chosen.seed)
    records = data.load(chosen.data).splits[chosen.split]
    picked = rng.choice(len(records), size=min(chosen.n, len(records)), replace=False).tolist()
    started = time.monotonic()
    policy, prompts = CrystalPolicy.load(chosen.policy)
    conditions: list[Any] = []
    refused = 0
    # Crystals of like size make even batches.
    for i in sorted(picked, key=lambda i: len(records[i].numbers)):
        structure = records[i].structure
        asked = {"formula": structure.composition.reduced_formula, "n_atoms": len(structure)}
        try:
            conditions += [{**c, "truth": structure} for c in answering(policy, prompts, asked, chosen.samples, rng)]
        except UserError as problem:
            refused += 1
            print(f"{asked['formula']}: {problem}")
    plain = [{k: v for k, v in condition.items() if k != "truth"} for condition in conditions]
    crystals, _ = drawn(policy, plain, torch.Generator().manual_seed(chosen.seed), batch=chosen.batch,
                        temperature=chosen.temperature)
    sampled = time.monotonic() - started
    rewards: list[Any] = [Match()] + ([Point(chosen.energy)] if chosen.energy else [])
    started = time.monotonic()
    with RewardPool(rewards, "match", workers=chosen.workers, ray=RayConfig(chunk=16, timeout_s=60)) as pool:
        scored = pool.score(crystals, conditions)
    shape = (len(picked), chosen.samples)
    rms = _table(scored.raw[:, 0], shape, np.nan)
    lines = [("1 sample", rms[:, :1]), (f"any of {chosen.samples}", rms)]
    if chosen.energy:
        lowest = np.nan_to_num(_table(scored.raw[:, 1], shape, np.inf), nan=np.inf).argmin(1)[:, None]
        lines.append((f"lowest of {chosen.samples} by {chosen.energy}", np.take_along_axis(rms, lowest, 1)))
    print(f"\n{len(picked):,} formulas ({refused} that the policy cannot write), {chosen.samples} samples of each, "
          f"{(scored.status == 'invalid').mean():.1%} of these invalid\n\n| | match rate | RMSE |\n|---|---|---|")
    for name, some in lines:
        rate, error, mean = figures(some)
        print(f"| {name} | {rate:.1%} ± {error:.1%} | {mean:.4f} |")
    print(f"\n{sampled:.0f} s of sampling, {time.monotonic() - started:.0f} s of comparing")


if __name__ == "__main__":
    main()
