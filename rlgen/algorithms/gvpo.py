"""Group variance policy optimisation (Zhang et al., arXiv 2504.19599): the policy learns to foresee rewards.

Of all policies, π_ref exp(r / β) up to a constant of the prompt trades reward against KL best. So β log π / π_ref is
what a policy expects to earn, and it is fitted, within groups, to what was earned: a regression, in which no ratio to
the policy that drew appears. Everything that a run has scored is learnt from again and again, whichever policy drew it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from policies.sampler import Rollout
from rlgen.algorithms.kinds import Tally
from rlgen.algorithms.learner import PIECES, Learner
from rlgen.algorithms.losses import foresight, group_regression, kl_k3
from rlgen.types import Condition

#: Rows that go through the network together where nothing is learnt from it.
TOGETHER = 32


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
        p, first = self.policy.representation.prompt_length, len(self.ids)
        order = torch.argsort(rollout.group, stable=True)
        ids, mask, drawn = (values.cpu()[order] for values in (rollout.ids, rollout.mask, rollout.logprobs))
        self.sizes += torch.unique_consecutive(rollout.group[order], return_counts=True)[1].tolist()
        self.ids += [one[: p + n].clone() for one, n in zip(ids, mask.sum(1).tolist(), strict=True)]
        self.conditions += [rollout.conditions[i] for i in order.tolist()]
        self.rewards += rewards[order.numpy()].tolist()
        found: dict[int, torch.Tensor] = {}
        for rows in self._alike(range(first, len(self.ids))):
            logprobs = self._reference(rows, self._padded(rows), rollout.temperature).cpu()
            found |= {i: one[: len(self.ids[i]) - p].clone() for i, one in zip(rows, logprobs, strict=True)}
        self.reference_logprobs += [found[i] for i in range(first, len(self.ids))]
        reference = pad_sequence(self.reference_logprobs[first:], batch_first=True)
        length = reference.shape[1]
        beta = self.beta.cpu()[self.kinds.of.cpu()[ids[:, p : p + length]]]
        return ((drawn[:, :length] - reference) * beta * mask[:, :length]).sum(1).numpy()

    def _alike(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """Rows of like length at a time: most of what the network is shown would be padding else."""
        by_length = sorted(rows, key=lambda i: len(self.ids[i]))
        for start in range(0, len(by_length), TOGETHER):
            yield by_length[start : start + TOGETHER]

    def _padded(self, rows: Sequence[int]) -> torch.Tensor:
        """(b, P + T) their prompts and tokens."""
        pad = self.policy.representation.pad
        return pad_sequence([self.ids[i] for i in rows], batch_first=True, padding_value=pad).to(
            self.accelerator.device)

    def _reference(self, rows: Sequence[int], ids: torch.Tensor, temperature: float) -> torch.Tensor:
        """(b, T) log-probabilities of the reference, for rows that will be learnt from and their ids (b, P + T)."""
        return self.reference.token_logprobs(ids, temperature, [self.conditions[i] for i in rows])[0]

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
        ids = self._padded(rows)
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
