"""Draws crystals from a policy: batched, KV-cached, inside the grammar, the same tokens for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pymatgen.core import Structure

from policies.model import CrystalPolicy
from rlgen.types import Condition, CrystalError

#: Where a smaller share of rows than this is unfinished, the finished ones are taken out of the network's way.
FULL = 0.8


@dataclass
class Rollout:
    """B sequences of one policy.

    ids: (B, T) from `<bos>` on, right-padded. logprobs: (B, T - P) of the tokens after the prompt under the policy
    that drew them, at `temperature`, 0 where padded. mask: (B, T - P) bool, the tokens that were drawn. group: (B,)
    the condition draw each row belongs to. replayed: (B,) bool, the rows that an older policy drew, none of `sample`'s.
    earned: (B,) the reward of each replayed row and NaN of the others; None without any.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    mask: torch.Tensor
    group: torch.Tensor
    conditions: list[Condition]
    temperature: float
    replayed: torch.Tensor
    earned: torch.Tensor | None = None


@torch.no_grad()
def sample(policy: CrystalPolicy, conditions: Sequence[Condition], generator: torch.Generator, *,
           temperature: float | None = None, group: Sequence[int] | None = None, batch: int = 256,
           progress: Callable[[int], None] = lambda n: None) -> Rollout:
    """One sequence for each condition, in batches; `progress` is told how many more are done.

    temperature: None is the one that the policy was fine-tuned at, 1 if it was not.
    """
    if temperature is None:
        temperature = policy.config.sampling_temperature
    training = policy.training
    policy.eval()
    prompts = torch.tensor([policy.representation.prompt(c) for c in conditions], device=policy.device)
    # Rows that ask for many atoms go first: within a batch the finished rows are then at its end.
    limits = [int(c.get("n_atoms", 0)) or policy.representation.max_atoms for c in conditions]
    order = sorted(range(len(limits)), key=lambda i: -limits[i])
    pad = policy.representation.pad
    ids = torch.full((len(limits), policy.representation.max_length), pad, device=policy.device)
    logprobs = torch.zeros(ids.shape, device=policy.device)
    for start in range(0, len(order), batch):
        rows = torch.tensor(order[start : start + batch], device=policy.device)
        asked = [conditions[i] for i in rows.tolist()]
        drawn, logp = _sample_batch(policy, prompts[rows], asked, generator, temperature)
        ids[rows[:, None], torch.arange(drawn.shape[1], device=ids.device)] = drawn
        logprobs[rows[:, None], torch.arange(logp.shape[1], device=ids.device)] = logp
        progress(len(rows))
    policy.train(training)
    p = policy.representation.prompt_length
    length = p + int((ids[:, p:] != pad).sum(1).max())
    return Rollout(ids[:, :length].clone(), logprobs[:, p:length].clone(), ids[:, p:length] != pad,
                   torch.tensor(list(group) if group is not None else list(range(len(limits)))), list(conditions),
                   temperature, torch.zeros(len(limits), dtype=torch.bool, device=ids.device))


def _sample_batch(policy: CrystalPolicy, prompts: torch.Tensor, conditions: Sequence[Condition],
                  generator: torch.Generator, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences (B, T) and log-probabilities (B, T), 0 on the prompt, for prompts (B, P)."""
    rep = policy.representation
    b, p = prompts.shape
    cache = policy.new_cache(b)
    ids = torch.full((b, rep.max_length), rep.pad, device=prompts.device)
    ids[:, :p] = prompts
    logprobs = torch.zeros(b, rep.max_length, device=prompts.device)
    active = b  # rows before `active` may still be unfinished
    here = torch.arange(b, device=prompts.device)  # those of them that the network goes on with
    new = prompts
    state = rep.start(prompts.cpu(), conditions)
    for t in range(p, rep.max_length):
        hidden = policy.hidden(new, cache)[:, -1:]
        legal = state.legal()[here.cpu(), None].to(ids.device)
        logp = policy.head(hidden, legal, temperature)[:, 0].log_softmax(-1)
        u = torch.rand(active, 1, generator=generator, device=ids.device, dtype=torch.float64)
        drawn = _draw(logp, u[here])
        ids[here, t] = drawn[:, 0]
        logprobs[here, t] = logp.gather(1, drawn)[:, 0]
        state.advance(ids[:active, t].cpu())
        unfinished = ((drawn[:, 0] != rep.eos) & (drawn[:, 0] != rep.pad)).nonzero()[:, 0]
        if not len(unfinished):
            break
        end = int(unfinished[-1]) + 1
        if len(unfinished) < FULL * end:
            policy.narrow(cache, unfinished)
            here = here[unfinished]
        else:
            here = here[:end]
        active = int(here[-1]) + 1
        state.keep(active)
        new = ids[here, t : t + 1]
    return ids[:, : t + 1], logprobs[:, : t + 1]


def _draw(logp: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """(b, 1) tokens for u (b, 1), uniform in [0, 1), by inverting the cumulative distribution of (b, V): an eighth of
    the time of `multinomial`."""
    cumulative = logp.double().exp().cumsum(-1)
    return torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)


def decode(policy: CrystalPolicy, rollout: Rollout) -> list[Structure | CrystalError]:
    """The crystal of every row, or why it is none."""
    crystals: list[Structure | CrystalError] = []
    for row in rollout.ids[:, policy.representation.prompt_length :].tolist():
        try:
            crystals.append(policy.representation.decode(row))
        except CrystalError as error:
            crystals.append(error)
    return crystals
