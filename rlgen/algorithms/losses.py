"""Advantages and losses as pure functions of tensors. B sequences, T tokens after the prompt."""

from __future__ import annotations

import torch


def group_advantages(rewards: torch.Tensor, group: torch.Tensor, *, scale: bool = True, eps: float = 1e-4
                     ) -> torch.Tensor:
    """(B,) (r - mean) / (std + eps) within each group; exactly 0 where a group's rewards are all equal.

    rewards, group: (B,). std is the sample standard deviation (Shao et al., arXiv 2402.03300, section 4.1). Without
    `scale` r - mean (Dr. GRPO: Liu et al., arXiv 2503.20783), so that groups that differ little teach little.
    """
    result = torch.zeros_like(rewards)
    for g in group.unique():
        rows = group == g
        r = rewards[rows]
        if len(r) > 1 and not torch.equal(r, r[:1].expand_as(r)):
            result[rows] = (r - r.mean()) / (r.std() + eps if scale else 1.0)
    return result


def clipped_surrogate(logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, low: float, high: float
                      ) -> torch.Tensor:
    """(B, T) -min(ρ A, clip(ρ, 1 - low, 1 + high) A) with ρ = exp(logprobs - old).

    Schulman et al., arXiv 1707.06347, eq. 7; the two bounds are those of DAPO (Yu et al., arXiv 2503.14476, eq. 8).
    """
    ratio = (logprobs - old).exp()
    a = advantages[:, None]
    return -torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)


def kl_k3(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(B, T) exp(d) - d - 1 with d = reference - logprobs: never negative, and without bias when the tokens were drawn
    from the policy. Schulman, "Approximating KL divergence" (2020), estimator k3.
    """
    d = reference - logprobs
    return d.exp() - d - 1


def token_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of (B, T) over the tokens that were drawn: each token counts the same, whatever its crystal's length
    (DAPO, arXiv 2503.14476, section 3.3)."""
    return (values * mask).sum() / mask.sum()
