"""What a step of GVPO costs behind a frozen trunk, and through all layers: `python benchmarks/adapter.py groups=32`."""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from accelerate import Accelerator

from policies.model import CrystalPolicy
from policies.sampler import sample
from rlgen.algorithms import make
from rlgen.algorithms.kinds import Tally
from rlgen.config import load

GROUP, REPEATS = 8, 4


def main(groups: str = "32", policy: str = "shipped") -> None:
    torch.set_num_threads(1)
    rng, n = np.random.default_rng(0), GROUP * int(groups)
    print("| adapter | ms of CPU a crystal, least of 4 steps |\n|---|---:|")
    for adapter in (256, 0):
        config = load("finetune", ["algorithm=gvpo", f"algorithm.adapter={adapter}"]).algorithm
        start, prompts = CrystalPolicy.load(policy)
        learner = make(config, start, Accelerator(cpu=True))
        conditions = [one for one in prompts.sample(int(groups), np.random.default_rng(0)) for _ in range(GROUP)]
        rollout = sample(learner.policy, conditions, torch.Generator().manual_seed(0),
                         group=[i // GROUP for i in range(n)])  # fmt: skip
        learner._keep(rollout, rng.random(n))
        took = []
        for _ in range(REPEATS):
            began = time.process_time()
            learner._step([range(i, i + GROUP) for i in range(0, n, GROUP)], 0, 1.0, Tally(learner.kinds))
            took.append(time.process_time() - began)
        print(f"| {adapter or 'all weights'} | {1e3 * min(took) / n:.2f} |", flush=True)


if __name__ == "__main__":
    main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))
