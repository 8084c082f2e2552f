"""Crystals drawn from a policy for what is asked, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pymatgen.core import Structure
from rich.progress import track

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from policies.sampler import decode, sample
from rlgen.types import Condition, CrystalError

#: Weight of guidance where a property is asked for and nothing else is said; measured in docs/conditions.md.
GUIDANCE = 2.0


def guidance(given: float | None, policy: CrystalPolicy, asked: Iterable[Mapping[str, Any]]) -> float:
    """The weight that is given, or else `GUIDANCE` if any of what is asked is a property that the policy knows."""
    if given is not None:
        return given
    return GUIDANCE if any(set(one) & set(policy.representation.conditions) for one in asked) else 1.0


def answering(policy: CrystalPolicy, prompts: PromptTable, asked: Mapping[str, Any], n: int, rng: np.random.Generator
              ) -> list[Condition]:
    """n prompts that ask for it, and for the rest follow the data. UserError says what the policy cannot meet."""
    representation = policy.representation
    if not asked:
        return prompts.sample(n, rng)
    representation.start(torch.tensor([representation.prompt(asked)]), [asked])
    return prompts.answering(asked, n, rng, representation.possible, representation.conditions)


def drawn(policy: CrystalPolicy, conditions: Sequence[Condition], generator: torch.Generator, *, batch: int,
          temperature: float | None = None) -> tuple[list[Structure | CrystalError], list[float]]:
    """A crystal for each condition (B), and the log-probability of each."""
    crystals: list[Structure | CrystalError] = []
    logprobs: list[float] = []
    for start in track(range(0, len(conditions), batch), "sampling"):
        rollout = sample(policy, conditions[start : start + batch], generator, temperature=temperature)
        crystals += decode(policy, rollout)
        logprobs += rollout.logprobs.sum(1).tolist()
    return crystals, logprobs
