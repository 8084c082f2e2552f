"""What Ray costs per crystal: a pool with one worker against the same rewards in this process.

    python benchmarks/ray_overhead.py count=128 repeats=5 data=mp20 energy=chgnet

Prints for a reward that does nothing and for stability from single-point energies: the seconds of both for a batch,
the best of the repeats, which take turns; their ratio; and the difference per crystal. One thread each, and one core's
worth of work: the driver waits while its worker measures.
"""

from __future__ import annotations

import os
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


def main(count: int = 128, repeats: int = 5, data: str = "mp20", energy: str = "chgnet") -> None:
    torch.set_num_threads(1)
    # On a busy machine the worker would else wait for others, not for Ray.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    crystals = [record.structure for record in load(data, limit=count).splits["train"][:count]]
    rewards: list[Reward] = [Nothing(), Stability(energy, cache=False)]
    print(f"{len(crystals)} crystals of {np.mean([len(c) for c in crystals]):.1f} atoms, best of {repeats}")
    print("| reward | in process, s | one worker, s | ratio | ms more per crystal |\n|---|---:|---:|---:|---:|")
    for reward in rewards:
        with (
            RewardPool([reward], reward.name, workers=0) as here,
            RewardPool([reward], reward.name, workers=1) as there,
        ):
            for pool in (here, there):
                pool.score(crystals[:16])  # loads what is needed
            times = np.array([[seconds(pool, crystals) for pool in (here, there)] for _ in range(repeats)])
        one, other = times.min(0)
        print(f"| {reward.name} | {one:.3f} | {other:.3f} | {other / one:.3f} | {1e3 * (other - one) / count:.2f} |")


if __name__ == "__main__":
    pairs = dict(argument.split("=", 1) for argument in sys.argv[1:])
    main(**{key: int(value) if value.isdigit() else value for key, value in pairs.items()})
