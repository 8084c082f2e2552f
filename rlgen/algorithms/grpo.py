"""Group relative policy optimisation (Shao et al., arXiv 2402.03300) and REINFORCE leave-one-out (RLOO).

Both compare the samples of a group, which share a prompt, with each other; nothing has to learn what a prompt is worth.
"""

from __future__ import annotations

import torch

from policies.sampler import Rollout
from rlgen.algorithms.learner import Surrogate, Tokens
from rlgen.algorithms.losses import group_advantages, leave_one_out


class GRPO(Surrogate):
    """The baseline is the mean of the group, the unit its standard deviation, the batch's, or none (Dr. GRPO)."""

    def estimate(self, rollout: Rollout, rewards: torch.Tensor) -> Tokens:
        advantages = group_advantages(rewards, rollout.group.to(rewards.device), self.config.scale_rewards)
        return {"advantage": advantages[:, None].expand_as(rollout.mask)}


class RLOO(Surrogate):
    """The baseline is the mean of the group's other samples (Ahmadian et al., arXiv 2402.14740)."""

    def estimate(self, rollout: Rollout, rewards: torch.Tensor) -> Tokens:
        advantages = leave_one_out(rewards, rollout.group.to(rewards.device))
        return {"advantage": advantages[:, None].expand_as(rollout.mask)}
