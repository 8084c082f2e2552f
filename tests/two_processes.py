"""Updates of every algorithm on one rollout, in as many processes as accelerate launches: `two_processes.py FOLDER`."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from toy_learning import cubic_share, rollout_of, settings, tiny

from rlgen.algorithms import make

ALGORITHMS = {"grpo": {"beta": 0.1, "entropy_coef": 0.01, "target_kl": 0.05},
              "rloo": {"loss_type": "dr_grpo"},
              "ppo": {"loss_type": "grpo", "scale_rewards": "batch"},
              "gvpo": {"beta": 0.1, "target_kl": 0.05, "minibatch": 16}}


def update(folder: Path, accelerator: Accelerator) -> None:
    """Two passes over minibatches (five of uneven size, unless said); the first process writes weights and scalars."""
    for name, changes in ALGORITHMS.items():
        learner = make(settings(**{"name": name, "num_iterations": 2, "minibatch": 7} | changes), tiny(), accelerator)
        rollout = rollout_of(tiny(), 0)
        stats = learner.update(rollout, cubic_share(learner.policy, rollout), np.random.default_rng(0))
        if accelerator.is_main_process:
            folder.mkdir(exist_ok=True)
            torch.save(learner.policy.state_dict(), folder / f"{name}.pt")
            (folder / f"{name}.json").write_text(json.dumps(stats))


if __name__ == "__main__":
    alone = Accelerator(cpu=True)
    assert alone.num_processes == 2
    update(Path(sys.argv[1]), alone)
    alone.end_training()
