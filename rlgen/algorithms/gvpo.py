"""Group variance policy optimisation (Zhang et al., arXiv 2504.19599): the policy learns to foresee rewards.

Of all policies, π_ref exp(r / β) up to a constant of the prompt trades reward against KL best. So β log π / π_ref is
what a policy expects to earn, and it is fitted, within groups, to what was earned: a regression, in which no ratio to
the policy that drew appears. Everything that a run has scored is learnt from again and again, whichever policy drew it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from policies.sampler import Rollout
from rlgen.algorithms.kinds import Tally
from rlgen.algorithms.learner import PIECES, Learner
from rlgen.algorithms.losses import foresight, group_regression, kl_k3
from rlgen.types import Condition


class GVPO(Learner):
    """What was scored is kept, in memory and in checkpoints: of each sequence its tokens, the reference's
    log-probabilities of them, reward and condition, and which of them are a group."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._forget()

    def _forget(self) -> None:
        self.ids: list[torch.Tensor] = []
        self.reference_logprobs: list[torch.Tensor] = []
        self.rewards: list[float] = []
        self.conditions: list[Condition] = []
        self.sizes: list[int] = []  # of the groups, one after another

    def begin(self, meaning: str) -> None:
        if meaning != self.meaning:
            self._forget()
        super().begin(meaning)

    def update(self, rollout: Rollout, rewards: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
        c, tally = self.config, Tally(self.kinds)
        earlier, first = len(self.sizes), len(self.rewards)
        expected = self._keep(rollout, rewards)
        ends = np.cumsum(self.sizes)
        groups = [range(end - size, end) for end, size in zip(ends.tolist(), self.sizes, strict=True)]
        steps = max(1, min(round(len(rewards) / c.minibatch),
                           (len(groups) - earlier) // self.accelerator.num_processes))
        for _ in range(c.num_iterations):
            for now in np.array_split(rng.permutation(np.arange(earlier, len(groups))), steps):
                past = rng.choice(earlier, min(earlier, round(c.past * len(now))), replace=False)
                self._step([groups[g] for g in [*now, *past]], first, rollout.temperature, tally)
        stats = tally.means(self.accelerator)
        place = np.repeat(np.arange(len(groups) - earlier), self.sizes[earlier:])
        return self.steer(stats) | {"policy/foresight": foresight(expected, np.array(self.rewards[first:]), place)}

    @torch.no_grad()
    def _keep(self, rollout: Rollout, rewards: np.ndarray) -> np.ndarray:
        """Remember a scored rollout, group by group. -> (B,) what the policy that drew it expected of each row."""
        rep, expected = self.policy.representation, []
        order = torch.argsort(rollout.group, stable=True)
        self.sizes += torch.unique_consecutive(rollout.group[order], return_counts=True)[1].tolist()
        for rows in order.to(rollout.ids.device).split(self.config.minibatch):
            length = int(rollout.mask[rows].sum(1).max())
            ids, mask = rollout.ids[rows, : rep.prompt_length + length], rollout.mask[rows, :length]
            conditions = [rollout.conditions[i] for i in rows.tolist()]
            reference = self._reference(ids, mask, rollout.temperature, conditions)
            kinds = self.kinds.of[ids[:, rep.prompt_length :]]
            gained = (rollout.logprobs[rows, :length] - reference) * self.beta[kinds]
            expected += (gained * mask).sum(1).tolist()
            for one, logprobs, n in zip(ids.cpu(), reference.cpu(), mask.sum(1).tolist(), strict=True):
                self.ids.append(one[: rep.prompt_length + n].clone())
                self.reference_logprobs.append(logprobs[:n].clone())
            self.conditions += conditions
        self.rewards += rewards[order.numpy()].tolist()
        return np.array(expected)

    def _reference(self, ids: torch.Tensor, mask: torch.Tensor, temperature: float,
                   conditions: Sequence[Condition]) -> torch.Tensor:
        """(b, T) log-probabilities of the reference, for rows that will be learnt from."""
        return self.reference.token_logprobs(ids, temperature, conditions)[0]

    def _step(self, groups: Sequence[range], first: int, temperature: float, tally: Tally) -> None:
        """One step of the optimiser on some groups, of which each process takes its part; sequences from `first` on
        are of this batch, and counted."""
        mine = groups[self.accelerator.process_index :: self.accelerator.num_processes]
        rows = [i for group in mine for i in group]
        order = torch.tensor([len(self.ids[i]) for i in rows]).argsort(stable=True)
        expected = torch.cat([self._expected([rows[k] for k in piece.tolist()], first, temperature, tally)
                              for piece in order.tensor_split(PIECES) if len(piece)])
        earned = torch.tensor([self.rewards[i] for i in rows], device=expected.device)
        sizes = [len(group) for group in mine]
        loss = group_regression(expected[order.argsort()], earned, sizes) / len(groups)
        loss.backward()
        tally.add_step("loss/policy", loss, self.accelerator)
        self.descend(tally)

    def _expected(self, rows: Sequence[int], first: int, temperature: float, tally: Tally) -> torch.Tensor:
        """(b,) the sum over a sequence's tokens of β log π / π_ref."""
        rep, device = self.policy.representation, self.accelerator.device
        ids = pad_sequence([self.ids[i] for i in rows], batch_first=True, padding_value=rep.pad).to(device)
        reference = pad_sequence([self.reference_logprobs[i] for i in rows], batch_first=True).to(device)
        lengths = torch.tensor([len(self.reference_logprobs[i]) for i in rows], device=device)
        mask = torch.arange(reference.shape[1], device=device) < lengths[:, None]
        logprobs, entropy = self.policy.token_logprobs(ids, temperature, [self.conditions[i] for i in rows])
        kind = self.kinds.of[ids[:, rep.prompt_length :]]
        fresh = mask & torch.tensor([i >= first for i in rows], device=device)[:, None]
        for name, values in (("policy/kl", kl_k3(logprobs, reference)), ("policy/entropy", entropy)):
            tally.add_by_kind(name, values, kind, fresh)
        return ((logprobs - reference) * mask * self.beta_scale * self.beta[kind]).sum(1)

    def state(self) -> dict[str, Any]:
        lengths = torch.tensor([len(ids) for ids in self.ids])
        return super().state() | {
            "ids": torch.cat(self.ids or [torch.zeros(0, dtype=torch.long)]), "lengths": lengths,
            "reference_logprobs": torch.cat(self.reference_logprobs or [torch.zeros(0)]),
            "rewards": np.array(self.rewards, dtype=float), "conditions": self.conditions, "sizes": self.sizes,
            "meaning": self.meaning}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        if len(state["rewards"]) < len(self.rewards):
            return  # the policy goes back to an earlier one, but what was found since stays known
        self.meaning, lengths = state["meaning"], state["lengths"]
        self.ids = list(state["ids"].split(lengths.tolist()))
        self.reference_logprobs = list(state["reference_logprobs"].split(
            (lengths - self.policy.representation.prompt_length).tolist()))
        self.rewards, self.conditions = state["rewards"].tolist(), state["conditions"]
        self.sizes = state["sizes"]
