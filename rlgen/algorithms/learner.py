"""What the algorithms of our own loop share: the policy, a frozen one it must not drift from, the optimiser, the state.

GRPO, RLOO and PPO also share the clipped surrogate over minibatches, the KL in the loss and entropy; they differ in
`estimate`, which makes advantages of rewards. Log-probabilities, old, new and of the reference, all come
from the forward pass that sampled: inside the grammar, at the rollout's temperature. Left out: dropout (ratios would
not start at 1), gradient accumulation and mixed precision (policies are small; `algorithm=trl` has both).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from policies.model import CrystalPolicy
from policies.sampler import Rollout
from rlgen import checkpoint
from rlgen.algorithms.kinds import Kinds, Tally
from rlgen.algorithms.losses import clipped_surrogate, kl_k3, ratios, steered, token_weights

Tokens = dict[str, torch.Tensor]
#: Rows of a step go through the network in so many pieces of like length: most of a batch would be padding else.
PIECES = 4


class Learner(ABC):
    """The policy that learns, the frozen one it must not drift from, and the optimiser."""

    def __init__(self, policy: CrystalPolicy, config: Any, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.policy: CrystalPolicy = policy.to(accelerator.device).eval()  # type: ignore[arg-type]
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)
        self.kinds = Kinds(policy.representation, accelerator.device)
        self.beta = self.kinds.weights(config.beta, config.beta_by_kind, "algorithm.beta_by_kind")
        self.kl_integral, self.beta_scale = 0.0, 1.0  # moved by `target_kl`
        self.meaning = ""
        self.optimiser = torch.optim.AdamW(self.policy.parameters(), lr=config.learning_rate, betas=(0.9, 0.99),
                                           weight_decay=0.0)

    @abstractmethod
    def update(self, rollout: Rollout, rewards: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
        """Learn from B scored sequences, the same on all processes; returns scalars for the log."""

    def begin(self, meaning: str) -> None:
        """What rewards mean from now on, in words: those that meant something else are not to be learnt from again."""
        self.meaning = meaning

    def save(self, folder: Path) -> None:
        """The policy, as a folder that can be sampled from, and everything else that learning goes on from."""
        self.policy.save_pretrained(folder / "policy")
        checkpoint.save_state(folder / "learner", self.state())

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; the reference stays the policy that this was made with."""
        self.policy.load_state_dict(type(self.policy).from_pretrained(folder / "policy").state_dict())
        self.restore(checkpoint.load_state(folder / "learner"))

    def state(self) -> dict[str, Any]:
        return {"optimiser": self.optimiser.state_dict(), "kl_integral": self.kl_integral,
                "beta_scale": self.beta_scale}

    def restore(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(state["optimiser"])
        self.kl_integral, self.beta_scale = state["kl_integral"], state["beta_scale"]

    @property
    def learning_rate(self) -> float:
        """The policy's, now."""
        return self.optimiser.param_groups[0]["lr"]

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply all learning rates from now on; part of what `save` keeps, so `load` brings back those of then."""
        for group in self.optimiser.param_groups:
            group["lr"] *= factor

    def steer(self, stats: dict[str, float]) -> dict[str, float]:
        """Move the weight of the KL towards `target_kl`, if there is one; returns the scalars with what it was."""
        c = self.config
        if c.target_kl is None:
            return stats
        stats = stats | {"policy/beta": c.beta * self.beta_scale}
        self.kl_integral, self.beta_scale = steered(self.kl_integral, stats["policy/kl"], c.target_kl)
        return stats

    def descend(self, tally: Tally) -> None:
        """One step of the optimiser along the gradient that all processes have accumulated."""
        self._sum_gradients()
        norms = [torch.nn.utils.clip_grad_norm_(group["params"], self.config.max_grad_norm)
                 for group in self.optimiser.param_groups]
        self.optimiser.step()
        self.optimiser.zero_grad()
        tally.add_step("policy/grad_norm", norms[0] / self.accelerator.num_processes, self.accelerator)

    def _sum_gradients(self) -> None:
        """Over processes: each has divided by what all of them have, so that the sum is the gradient of the whole."""
        if self.accelerator.num_processes > 1:
            found = [p.grad for group in self.optimiser.param_groups for p in group["params"] if p.grad is not None]
            summed = self.accelerator.reduce(torch.cat([grad.reshape(-1) for grad in found]), "sum")
            for grad, new in zip(found, summed.split([grad.numel() for grad in found]), strict=True):
                grad.copy_(new.view_as(grad))


class Surrogate(Learner):
    """Ascends the clipped surrogate of advantages, less the KL."""

    def __init__(self, policy: CrystalPolicy, config: Any, accelerator: Accelerator):
        super().__init__(policy, config, accelerator)
        self.entropy_coef = self.kinds.weights(config.entropy_coef, config.entropy_by_kind, "algorithm.entropy_by_kind")

    @abstractmethod
    def estimate(self, rollout: Rollout, rewards: torch.Tensor) -> Tokens:
        """"advantage" (B, T) of each token drawn from rewards (B,), and whatever else `other_loss` needs by token."""

    def other_loss(self, hidden: torch.Tensor, tokens: Tokens, share: torch.Tensor, tally: Tally) -> torch.Tensor:
        """What an algorithm adds to the loss of a step; share: (b, T), each token's share in a mean over the step."""
        return hidden.new_zeros(())

    def update(self, rollout: Rollout, rewards: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
        c, world = self.config, self.accelerator.num_processes
        device, size = self.accelerator.device, len(rewards)
        tokens = {"mask": rollout.mask, "old": rollout.logprobs}
        tokens |= self.estimate(rollout, torch.tensor(rewards, dtype=torch.float32, device=device))
        steps = max(1, min(round(size / c.minibatch), size // world))
        tally, taken = Tally(self.kinds), 0
        for _ in range(c.num_iterations):
            for rows in np.array_split(rng.permutation(size), steps):
                self._step(rollout, tokens, torch.from_numpy(rows).to(device), tally,
                           tokens_per_step=float(rollout.mask.sum()) / steps, first=taken == 0)
                taken += 1
        stats = tally.means(self.accelerator)
        with_advantage = (tokens["advantage"] * rollout.mask != 0).any(1)
        return self.steer(stats) | {"policy/with_advantage": float(with_advantage.float().mean())}

    def _step(self, rollout: Rollout, tokens: Tokens, rows: torch.Tensor, tally: Tally, *, tokens_per_step: float,
              first: bool) -> None:
        """One step of the optimiser on some rows, of which each process takes its part."""
        c, rep = self.config, self.policy.representation
        mask = tokens["mask"][rows]
        weights = token_weights(mask, c.loss_type, tokens=tokens_per_step,
                                longest=rep.max_length - rep.prompt_length)
        share = mask / mask.sum()
        part = torch.arange(self.accelerator.process_index, len(rows), self.accelerator.num_processes).to(rows.device)
        by_length = part[mask[part].sum(1).argsort(stable=True)]
        losses = [self._accumulate(rollout, tokens, rows[piece], weights[piece], share[piece], tally, first=first)
                  for piece in by_length.tensor_split(PIECES) if len(piece)]
        self.descend(tally)
        tally.add_step("loss/policy", torch.stack(losses).sum(), self.accelerator)

    def _accumulate(self, rollout: Rollout, tokens: Tokens, rows: torch.Tensor, weights: torch.Tensor,
                    share: torch.Tensor, tally: Tally, *, first: bool) -> torch.Tensor:
        """Add the gradient of rows (b,) to what there is; returns their part of the policy's loss.

        weights, share: (b, T) of each token in the loss, and in a plain mean over the step's tokens.
        """
        c, policy, rep = self.config, self.policy, self.policy.representation
        length = int(tokens["mask"][rows].sum(1).max())  # the longest of these rows: the rest is padding
        weights, share = weights[:, :length], share[:, :length]
        tokens = {name: values[rows, :length] for name, values in tokens.items()}
        mask, fresh = tokens["mask"], ~rollout.replayed[rows, None]
        ids = rollout.ids[rows, : rep.prompt_length + length]
        legal = rep.masks(ids[:, :-1], [rollout.conditions[i] for i in rows.tolist()])
        with torch.no_grad():
            reference, _ = self.reference.token_logprobs(ids, rollout.temperature, legal=legal)
        hidden = policy.before_tokens(ids)
        logprobs, entropy = policy.token_logprobs(ids, rollout.temperature, legal=legal, hidden=hidden,
                                                  train_entropy=bool(self.entropy_coef.any()))
        old = tokens["old"]
        ratio = ratios(logprobs, old, mask, c.importance_sampling_level)
        surrogate = weights * clipped_surrogate(ratio, tokens["advantage"], c.epsilon, c.epsilon_high)
        kind = self.kinds.of[ids[:, rep.prompt_length :]]
        kl = kl_k3(logprobs, reference)
        penalty = weights * self.beta_scale * self.beta[kind] * (kl * ratio if c.use_bias_correction_kl else kl)
        bonus = share * self.entropy_coef[kind] * entropy
        loss = surrogate.sum() + penalty.sum() - bonus.sum() + self.other_loss(hidden, tokens, share, tally)
        loss.backward()

        tally.add("policy/clip_fraction", ((ratio < 1 - c.epsilon) | (ratio > 1 + c.epsilon_high)).float(), mask)
        tally.add("policy/old_kl", kl_k3(logprobs, old), mask)
        if first:
            tally.add("policy/logprob_gap", (logprobs - old).abs(), mask & fresh)
        tally.add("policy/replay_ratio", (logprobs - old).exp(), mask & ~fresh)
        for name, values in (("policy/kl", kl), ("policy/entropy", entropy)):
            tally.add_by_kind(name, values, kind, mask)
        return surrogate.sum().detach()
