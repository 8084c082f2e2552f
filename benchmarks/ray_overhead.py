"""What Ray costs per crystal: a pool with one worker against the same rewards in this process.

    python benchmarks/ray_overhead.py count=64 repeats=20 data=mp20 energy=chgnet

Prints for a reward that does nothing and for stability from single-point energies the milliseconds per crystal of both,
and their ratio: medians of the repeats, in which the two take turns, and in brackets the quartiles of the ratio. One
thread each; the driver waits while its worker measures.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from rewards.base import Reward
from rewards.stability import Stability
from rlgen.data import load
from rlgen.reward_pool import RewardPool


@dataclass(frozen=True)
class Nothing:
    """Measures nothing: what is left is packing, the round trips, and building the crystals anew."""

    name: ClassVar[str] = "nothing"
    unit: ClassVar[str] = ""
    per_sample: ClassVar[bool] = True

    def measure(self, structures, conditions):
        return np.ones(len(structures))

    def transform(self, raw):
        return raw


def seconds(pool: RewardPool, crystals: list) -> float:
    start = time.perf_counter()
    pool.score(crystals)
    return time.perf_counter() - start


def main(count: int = 64, repeats: int = 20, data: str = "mp20", energy: str = "chgnet") -> None:
    torch.set_num_threads(1)
    crystals = [record.structure for record in load(data, limit=count).splits["train"][:count]]
    rewards: list[Reward] = [Nothing(), Stability(energy, max_force=float("inf"))]
    print(f"{len(crystals)} crystals of {np.mean([len(c) for c in crystals]):.1f} atoms, {repeats} repeats")
    print("| reward | in process, ms per crystal | one worker | ratio |\n|---|---:|---:|---:|")
    for reward in rewards:
        with (
            RewardPool([reward], reward.name, workers=0) as here,
            RewardPool([reward], reward.name, workers=1) as there,
        ):
            for pool in (here, there):
                pool.score(crystals[:16])  # loads what is needed
            times = np.array([[seconds(pool, crystals) for pool in (here, there)] for _ in range(repeats)])
        one, other = 1e3 * np.median(times, axis=0) / len(crystals)
        low, middle, high = np.percentile(times[:, 1] / times[:, 0], [25, 50, 75])
        print(f"| {reward.name} | {one:.2f} | {other:.2f} | {middle:.2f} [{low:.2f}, {high:.2f}] |")


if __name__ == "__main__":
    pairs = dict(argument.split("=", 1) for argument in sys.argv[1:])
    main(**{key: int(value) if value.isdigit() else value for key, value in pairs.items()})
