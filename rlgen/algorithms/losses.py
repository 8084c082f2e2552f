"""Advantages and losses as pure functions of tensors. B sequences, T tokens after the prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

SCALES = ("none", "group", "batch")
LOSS_TYPES = ("dapo", "bnpo", "grpo", "dr_grpo")
LEVELS = ("token", "sequence")
#: Nats by which log-probabilities of one policy may differ: the shape of a batch moves the last bits.
NOISE = 1e-4


def group_advantages(rewards: torch.Tensor, group: torch.Tensor, scale: str = "group", eps: float = 1e-4
                     ) -> torch.Tensor:
    """(B,) (r - mean) / (std + eps) with the mean of each group; exactly 0 where a group's rewards are all equal.

    rewards, group: (B,). std is the sample standard deviation of the group (Shao et al., arXiv 2402.03300, section
    4.1) or, with scale "batch", of all rewards; with "none" nothing is divided (Dr. GRPO: Liu et al., arXiv
    2503.20783), so that groups that differ little teach little.
    """
    result = torch.zeros_like(rewards)
    for g in group.unique():
        rows = group == g
        r = rewards[rows]
        if not _equal(r):
            result[rows] = (r - r.mean()) / (r.std() + eps if scale == "group" else 1.0)
    return result / (rewards.std() + eps) if scale == "batch" else result


def leave_one_out(rewards: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """(B,) r - mean of the group's other rewards; exactly 0 where a group's rewards are all equal.

    The baseline does not depend on the sample, so that its policy gradient has no bias (Kool et al., 2019; Ahmadian et
    al., arXiv 2402.14740, eq. 9).
    """
    result = torch.zeros_like(rewards)
    for g in group.unique():
        rows = group == g
        r = rewards[rows]
        if not _equal(r):
            result[rows] = (r - r.mean()) * len(r) / (len(r) - 1)
    return result


def _equal(values: torch.Tensor) -> bool:
    return torch.equal(values, values[:1].expand_as(values))


def gae(rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float) -> torch.Tensor:
    """(B, T) generalised advantage estimates for a reward (B,) that is earned with the last token; 0 where padded.

    A_t = δ_t + γ λ A_(t+1), δ_t = r_t + γ V_(t+1) - V_t (Schulman et al., arXiv 1506.02438, eq. 16). values: (B, T),
    V before each token; after the last it is 0. mask: (B, T), true from the first token to the last.
    """
    last = torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1
    earned = torch.where(last, rewards[:, None], 0.0)
    values = values * mask
    after = torch.nn.functional.pad(values[:, 1:], (0, 1))
    delta = (earned + gamma * after - values) * mask
    result, following = torch.zeros_like(values), torch.zeros_like(rewards)
    for t in reversed(range(mask.shape[1])):
        following = delta[:, t] + gamma * lam * following
        result[:, t] = following
    return result


def whiten(values: torch.Tensor, mask: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """(B, T) with mean 0 and standard deviation 1 over the masked; 0 elsewhere."""
    chosen = values[mask]
    return (values - chosen.mean()) / (chosen.std() + eps) * mask


def group_regression(expected: torch.Tensor, earned: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Sum over groups of the mean of ((e - mean e) - (r - mean r))², both means those of the group.

    expected, earned: (B,), group after group; sizes: of the groups. Zhang et al., arXiv 2504.19599.
    """
    errors = (expected - earned).split(list(sizes))
    return torch.stack([(error - error.mean()).square().mean() for error in errors]).sum()


def foresight(expected: np.ndarray, earned: np.ndarray, group: np.ndarray) -> float:
    """Correlation of two (B,) within groups (B,): what is left when each group's mean is taken away; 0 if one is
    constant within all of them, but for the noise of log-probabilities."""
    sizes = np.bincount(group)
    e, r = (values - (np.bincount(group, values) / sizes)[group] for values in (expected, earned))
    if min(np.abs(e).max(), np.abs(r).max()) < NOISE:
        return 0.0
    return float(e @ r / np.sqrt((e @ e) * (r @ r)))


def ratios(logprobs: torch.Tensor, old: torch.Tensor, mask: torch.Tensor, level: str = "token") -> torch.Tensor:
    """exp(logprobs - old): (B, T) of each token, or (B, 1), the geometric mean over a sequence's tokens.

    The second is GSPO's (Zheng et al., arXiv 2507.18071, eq. 7): what is rewarded is the whole crystal. Differences of
    no more than `NOISE` are none, so that ratios to the policy itself are exactly 1.
    """
    old = torch.where((logprobs - old).abs() <= NOISE, logprobs.detach(), old)
    if level == "token":
        return (logprobs - old).exp()
    return (((logprobs - old) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)).exp()


def clipped_surrogate(ratio: torch.Tensor, advantages: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """-min(ρ A, clip(ρ, 1 - low, 1 + high) A) of ratios and advantages that broadcast, (B, T) or (B, 1).

    Schulman et al., arXiv 1707.06347, eq. 7; the two bounds are those of DAPO (Yu et al., arXiv 2503.14476, eq. 8).
    """
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def clipped_value_loss(values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, clip: float) -> torch.Tensor:
    """(B, T) max((V - R)², (V_clipped - R)²) / 2, where V_clipped is within `clip` of the value before the update.

    Not in the paper of PPO but in its code (Huang et al., "The 37 implementation details of PPO", 2022, detail 9).
    """
    near = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """1 - Var(R - V) / Var(R) over the masked: 1 is perfect, 0 no better than a constant; NaN if R is constant."""
    spread = returns[mask].var()
    return float(1 - (returns - values)[mask].var() / spread) if spread > 1e-12 else math.nan


def kl_k3(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(B, T) exp(d) - d - 1 with d = reference - logprobs: never negative, and without bias when the tokens were drawn
    from the policy. Schulman, "Approximating KL divergence" (2020), estimator k3.
    """
    d = reference - logprobs
    return d.exp() - d - 1


def token_weights(mask: torch.Tensor, loss_type: str, *, tokens: float, longest: int) -> torch.Tensor:
    """(B, T) what each token's loss counts, so that Σ weights · loss is the loss of a step; 0 where padded.

    grpo: the mean of sequences' means, so that a small crystal's tokens count more (Shao et al.). bnpo: the mean over
    this step's tokens. dapo: all steps of an update divide by the same number, their mean number of `tokens` (Yu et
    al., section 3.3). dr_grpo: the sum over `longest` tokens a sequence, a constant (Liu et al.). Names are TRL's.
    """
    if loss_type == "grpo":
        return mask / mask.sum(1, keepdim=True).clamp(min=1) / len(mask)
    return mask / {"bnpo": float(mask.sum()), "dapo": tokens, "dr_grpo": float(len(mask) * longest)}[loss_type]


def steered(integral: float, kl: float, target: float) -> tuple[float, float]:
    """The integral (at first 0) and the factor of the KL's weight after a step with the KL `kl`.

    e = clip(kl / target - 1, ±1), integral + 0.1 e, factor = exp(integral + 2 e). Ziegler et al., arXiv 1909.08593,
    section 2.2, have the integral alone, which in runs of a hundred steps swings about the target.
    """
    error = min(1.0, max(-1.0, kl / target - 1))
    integral += 0.1 * error
    return integral, math.exp(integral + 2 * error)
