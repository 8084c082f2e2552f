"""Updates of every algorithm on one rollout, in one process or in one of two."""

import json
import os
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


def one_of_two(rank: int, port: int, folder: Path) -> None:
    """The update, in a process that finds the other as a launcher's variables say."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    update(folder, accelerator)
    accelerator.end_training()
