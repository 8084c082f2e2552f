"""Group relative policy optimisation on rollouts of crystals (Shao et al., arXiv 2402.03300), a loop of our own.

Left out: a value head (the group's mean is the baseline) and length normalisation per sequence (a large crystal's
tokens count as much as a small one's). Log-probabilities, old, new and of the reference, all come from the forward
pass that sampled: inside the grammar, at the rollout's temperature.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from policies.model import CrystalPolicy
from policies.sampler import Rollout
from rlgen import checkpoint
from rlgen.algorithms.losses import clipped_surrogate, group_advantages, kl_k3, token_mean


class GRPO:
    """The policy that learns, the frozen one it must not drift from, and the optimiser."""

    def __init__(self, policy: CrystalPolicy, config: Any, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.reference = copy.deepcopy(policy).eval().requires_grad_(False).to(accelerator.device)
        optimiser = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, betas=(0.9, 0.99),
                                      weight_decay=0.0)
        self.policy, self.optimiser = accelerator.prepare(policy, optimiser)
        self.policy.eval()  # without dropout, so that ratios start at exactly 1

    def update(self, rollout: Rollout, rewards: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
        """Learn from B scored sequences; returns scalars for the log, means over minibatches."""
        c = self.config
        device = self.accelerator.device
        advantages = group_advantages(torch.tensor(rewards, dtype=torch.float32), rollout.group,
                                      scale=c.scale_rewards == "group").to(device)
        stats: dict[str, list[float]] = {}
        for _ in range(c.epochs):
            for rows in np.array_split(rng.permutation(len(rewards)), max(1, round(len(rewards) / c.minibatch))):
                for name, value in self._step(rollout, advantages, torch.from_numpy(rows).to(device)).items():
                    stats.setdefault(name, []).append(value)
        used = float((advantages != 0).float().mean())
        return {name: float(np.mean(values)) for name, values in stats.items()} | {"policy/with_advantage": used}

    def save(self, folder: Path) -> None:
        """The policy, as a folder that can be sampled from, and the optimiser."""
        self.accelerator.unwrap_model(self.policy).save_pretrained(folder / "policy")
        checkpoint.save_state(folder / "optimiser", self.optimiser.state_dict())

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; the reference stays the policy that this was made with."""
        model = self.accelerator.unwrap_model(self.policy)
        model.load_state_dict(type(model).from_pretrained(folder / "policy").state_dict())
        self.optimiser.load_state_dict(checkpoint.load_state(folder / "optimiser"))

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the learning rate, for good: it is kept with the optimiser."""
        for group in self.optimiser.param_groups:
            group["lr"] *= factor

    def _step(self, rollout: Rollout, advantages: torch.Tensor, rows: torch.Tensor) -> dict[str, float]:
        c = self.config
        mask = rollout.mask[rows]
        length = int(mask.sum(1).max())  # the longest of these rows: the rest is padding
        mask, old = mask[:, :length], rollout.logprobs[rows, :length]
        ids = rollout.ids[rows, : rollout.ids.shape[1] - rollout.mask.shape[1] + length]
        model = self.accelerator.unwrap_model(self.policy)
        asked = [rollout.conditions[i] for i in rows.tolist()]
        with torch.no_grad():
            reference, _ = self.reference.token_logprobs(ids, rollout.temperature, asked)
        logprobs, entropy = model.token_logprobs(ids, rollout.temperature, asked)
        surrogate = token_mean(clipped_surrogate(logprobs, old, advantages[rows], c.clip_low, c.clip_high), mask)
        kl = token_mean(kl_k3(logprobs, reference), mask)
        self.accelerator.backward(surrogate + c.kl * kl)
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), c.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        ratio = (logprobs.detach() - old).exp()
        clipped = ((ratio < 1 - c.clip_low) | (ratio > 1 + c.clip_high)).float()
        return {"loss/policy": float(surrogate.detach()), "policy/kl": float(kl.detach()),
                "policy/entropy": float(token_mean(entropy.detach(), mask)),
                "policy/clip_fraction": float(token_mean(clipped, mask)), "policy/grad_norm": float(norm)}
