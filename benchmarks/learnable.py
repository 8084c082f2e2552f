"""What of a reward can be learnt: `python benchmarks/learnable.py expression=novelty+stability groups=256 workers=0`.

A learner compares samples that share a prompt, so only the spread within groups teaches, and of it only what the policy
could know. This draws groups from a policy, scores them, and prints of each score and of their total: the mean, the
standard deviation within groups, and how well a ridge regression on the policy's hidden states predicts, for groups
that it has not seen, which samples of a group earn more (the correlation within groups). Below: how the scores go
together. Any setting of `rlgen.finetune` may be given.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from policies.model import CrystalPolicy
from policies.sampler import Rollout, decode, sample
from rlgen.asking import Asking
from rlgen.config import load
from rlgen.experience import make_rewards, resolve_energies
from rlgen.reward_pool import RewardPool

GROUP = 8
#: Of the ridge; features are standardised and there are some hundreds of them.
PENALTY = 300.0


@torch.no_grad()
def features(policy: CrystalPolicy, rollout: Rollout) -> np.ndarray:
    """(B, 2 D): the hidden state that the last token is drawn from, and the mean over all tokens; standardised."""
    found = []
    for rows in torch.arange(len(rollout.ids)).split(128):
        hidden, mask = policy.before_tokens(rollout.ids[rows]), rollout.mask[rows]
        count = mask.sum(1)
        found.append(torch.cat([hidden[torch.arange(len(rows)), count - 1],
                                (hidden * mask[..., None]).sum(1) / count[:, None]], 1))
    x = torch.cat(found).double().numpy()
    return (x - x.mean(0)) / (x.std(0) + 1e-9)


def within(values: np.ndarray) -> np.ndarray:
    """Values (B, …) less the mean of their group."""
    groups = values.reshape(-1, GROUP, *values.shape[1:])
    return (groups - groups.mean(1, keepdims=True)).reshape(values.shape)


def predicted(x: np.ndarray, y: np.ndarray, folds: int = 4) -> np.ndarray:
    """Ridge predictions of y (B, K), each group's by a fit to the groups of the other folds."""
    fold = np.arange(len(x)) // GROUP % folds
    result = np.zeros_like(y)
    for k in range(folds):
        train, mean = fold != k, y[fold != k].mean(0)
        weights = np.linalg.solve(x[train].T @ x[train] + PENALTY * np.eye(x.shape[1]), x[train].T @ (y[train] - mean))
        result[fold == k] = x[fold == k] @ weights + mean
    return result


def main(arguments: list[str]) -> None:
    given = {"expression": "novelty+stability", "groups": "256"}
    given |= dict(argument.split("=", 1) for argument in arguments)
    groups = int(given.pop("groups"))
    config = load("finetune", [f"reward={given.pop('expression')}", *(f"{k}={v}" for k, v in given.items())])
    resolve_energies(config)
    policy, prompts = CrystalPolicy.load(config.policy)
    drawn = Asking(prompts, config).draw(groups, np.random.default_rng(config.seed), policy)
    conditions = [c for c in drawn for _ in range(GROUP)]
    rollout = sample(policy, conditions, torch.Generator().manual_seed(config.seed))
    with RewardPool(*make_rewards(config), workers=config.workers) as pool:
        scored = pool.score(decode(policy, rollout), rollout.conditions)
    names = [*scored.names, "total"]
    y = np.column_stack([np.nan_to_num(scored.score), scored.total])  # what was not measured counts 0, as in the total
    spread, guess = within(y), within(predicted(features(policy, rollout), y))
    failed = np.mean(scored.status == "failed")
    print(f"{len(y)} crystals in groups of {GROUP}, energies of {config.energy}, {failed:.1%} not measured\n\n"
          "| score | mean | std within groups | predicted within groups |\n|---|---:|---:|---:|")
    for k, name in enumerate(names):
        print(f"| {name} | {y[:, k].mean():.3f} | {spread[:, k].std():.3f} | "
              f"{np.corrcoef(spread[:, k], guess[:, k])[0, 1]:.3f} |")
    print("\ncorrelations within groups:")
    for k, one in enumerate(names):
        for j in range(k):
            print(f"  {one} and {names[j]}: {np.corrcoef(spread[:, k], spread[:, j])[0, 1]:+.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
