"""GVPO of a small network behind the policy's last hidden states, which stay what they were.

What stays need not be computed again: hidden states and the grammar's masks of all that was scored are kept, so that a
pass over a crystal costs a twentieth of one through all layers, and the few weights that learn are fitted in many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from policies.model import CrystalPolicy
from policies.sampler import Rollout
from rlgen.algorithms.gvpo import GVPO
from rlgen.algorithms.kinds import Tally
from rlgen.algorithms.losses import kl_k3


class AdapterGVPO(GVPO):
    """Beside what GVPO keeps: hidden states (T, D) of each sequence and its masks as bits (T, V / 8), and the sizes of
    the batches that were scored, from which in a checkpoint these follow."""

    def __init__(self, policy: CrystalPolicy, config: Any, accelerator: Accelerator):
        policy.adapt(config.adapter)
        assert policy.adapter is not None
        super().__init__(policy.requires_grad_(False), config, accelerator)
        policy.adapter.requires_grad_(True)

    def _forget(self) -> None:
        super()._forget()
        self.hidden: dict[int, torch.Tensor] = {}
        self.legal: dict[int, np.ndarray] = {}
        self.batches: list[int] = []

    def _keep(self, rollout: Rollout, rewards: np.ndarray) -> np.ndarray:
        self.batches.append(len(rewards))
        return super()._keep(rollout, rewards)

    def _reference(self, rows: Sequence[int], ids: torch.Tensor, temperature: float) -> torch.Tensor:
        hidden, legal = self._look(rows, ids)
        return self.reference.token_logprobs(ids, temperature, hidden=hidden, legal=legal)[0]

    @torch.no_grad()
    def _look(self, rows: Sequence[int], ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (b, T, D) and masks (b, T, V) of rows and their ids (b, P + T); both are kept."""
        hidden = self.reference.before_tokens(ids)
        legal = self.policy.representation.masks(ids[:, :-1], [self.conditions[i] for i in rows])
        for i, of, allowed in zip(rows, hidden.cpu(), legal.cpu().numpy(), strict=True):
            n = len(self.ids[i]) - self.policy.representation.prompt_length
            self.hidden[i], self.legal[i] = of[:n].clone(), np.packbits(allowed[:n], axis=1)
        return hidden, legal

    def _expected(self, rows: Sequence[int], first: int, temperature: float, tally: Tally) -> torch.Tensor:
        device, p = self.accelerator.device, self.policy.representation.prompt_length
        hidden = torch.cat([self.hidden[i] for i in rows]).to(device)
        bits = np.concatenate([self.legal[i] for i in rows])
        legal = torch.from_numpy(np.unpackbits(bits, axis=1, count=len(self.kinds.of))).bool().to(device)
        ids = torch.cat([self.ids[i][p:] for i in rows]).to(device)
        reference = torch.cat([self.reference_logprobs[i] for i in rows]).to(device)
        lengths = torch.tensor([len(self.hidden[i]) for i in rows], device=device)
        owner = torch.arange(len(rows), device=device).repeat_interleave(lengths)
        fresh = torch.tensor([i >= first for i in rows], device=device)[owner]
        kind = self.kinds.of[ids]
        expected = reference.new_zeros(len(rows))
        for one in kind.unique():  # the tokens of a kind were chosen among few: those that any of them might have been
            at = (kind == one).nonzero()[:, 0]
            tokens = legal[at].any(0).nonzero()[:, 0]
            allowed = legal[at][:, tokens]
            logits = self.policy.logits(hidden[at], tokens) / temperature
            logp = logits.masked_fill(~allowed, float("-inf")).log_softmax(-1)
            known = logp.detach()
            entropy = -(known.exp() * known.masked_fill(~allowed, 0.0)).sum(-1)
            logprobs = logp.gather(1, torch.searchsorted(tokens, ids[at])[:, None])[:, 0]
            for name, values in (("policy/kl", kl_k3(logprobs, reference[at])), ("policy/entropy", entropy)):
                tally.add_by_kind(name, values, kind[at], fresh[at])
            gained = (logprobs - reference[at]) * self.beta_scale * self.beta[one]
            expected = expected.index_add(0, owner[at], gained)
        return expected

    def state(self) -> dict[str, Any]:
        return super().state() | {"batches": self.batches}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        if len(self.hidden) < len(self.rewards):
            self.batches = state["batches"]
            ends = np.cumsum(self.batches).tolist()
            for start, end in zip([0, *ends], ends, strict=False):
                for rows in self._alike(range(start, end)):
                    self._look(rows, self._padded(rows))
