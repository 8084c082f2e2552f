"""Proximal policy optimisation (Schulman et al., arXiv 1707.06347) with a value head on the policy's trunk.

The crystal's reward comes with its last token; generalised advantage estimation spreads it over the tokens. The KL to
the pretrained policy is in the loss, as for GRPO, not in the reward: the value head then predicts rewards alone, and
the KL can be weighted by kind of token. The head reads the trunk's hidden states but sends no gradient into them: the
policy is moved by rewards, KL and entropy alone, and losing the head loses nothing of the policy.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from policies.model import CrystalPolicy
from policies.sampler import Rollout
from rlgen.algorithms.kinds import Tally
from rlgen.algorithms.learner import Surrogate, Tokens
from rlgen.algorithms.losses import clipped_value_loss, explained_variance, gae, whiten


class ValueHead(nn.Module):
    """V (B, T) of hidden states (B, T, D): a layer of SiLU units, and an output that starts at exactly 0."""

    def __init__(self, size: int):
        super().__init__()
        self.layer, self.out = nn.Linear(size, size), nn.Linear(size, 1)
        # The same on all processes and in every run.
        nn.init.normal_(self.layer.weight, std=size**-0.5, generator=torch.Generator().manual_seed(0))
        for zero in (self.layer.bias, self.out.weight, self.out.bias):
            nn.init.zeros_(zero)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.out(F.silu(self.layer(hidden.float())))[..., 0]


class PPO(Surrogate):
    """`Surrogate` with a value head, whose weights are kept in checkpoints and not in the policy's folder."""

    def __init__(self, policy: CrystalPolicy, config: Any, accelerator: Accelerator):
        super().__init__(policy, config, accelerator)
        with torch.no_grad():
            prompt = torch.tensor([policy.representation.prompt({})], device=accelerator.device)
            width = self.policy.hidden(prompt).shape[-1]  # language models do not agree on its name
        self.value_head = ValueHead(width).to(accelerator.device)
        self.optimiser.add_param_group({"params": list(self.value_head.parameters()),
                                        "lr": config.value_learning_rate})

    def estimate(self, rollout: Rollout, rewards: torch.Tensor) -> Tokens:
        """Advantages, whitened over the batch's tokens unless `scale_rewards` is "none"; "value" (B, T) before the
        update, and "return" (B, T)."""
        c, mask = self.config, rollout.mask
        with torch.no_grad():
            value = torch.cat([self.value_head(self.policy.before_tokens(ids))
                               for ids in rollout.ids.split(c.minibatch)])
        advantages = gae(rewards, value, mask, c.gamma, c.lam)
        self.explained = explained_variance(value, gae(rewards, value, mask, c.gamma, 1.0) + value, mask)
        scaled = whiten(advantages, mask) if c.scale_rewards == "batch" else advantages
        return {"advantage": scaled, "value": value, "return": advantages + value}

    def update(self, *args: Any) -> dict[str, float]:
        stats = super().update(*args)
        return stats | {"value/explained_variance": self.explained}

    def other_loss(self, hidden: torch.Tensor, tokens: Tokens, share: torch.Tensor, tally: Tally) -> torch.Tensor:
        values = self.value_head(hidden.detach())
        losses = clipped_value_loss(values, tokens["value"], tokens["return"], self.config.cliprange_value)
        tally.add("loss/value", losses, tokens["mask"])
        return (share * losses).sum()

    def state(self) -> dict[str, Any]:
        return super().state() | {"value_head": self.value_head.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.value_head.load_state_dict(state["value_head"])
