"""The best sequences of a run, to be learnt from again beside fresh answers to the same prompts.

A step draws some of its groups for prompts of kept sequences and completes them with those: their log-probabilities
stay those of the policy that drew them, so that importance ratios are exact. Kept is the best of each group by its
gain, the reward beyond the mean of its group: by reward alone only easy prompts would be asked again. They are chosen
for being good, so what they teach is imitation of the best (Oh et al., arXiv 1806.05635), not an unbiased gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from policies.sampler import Rollout
from rlgen.protostructure import read_label
from rlgen.types import Condition


@dataclass(frozen=True, eq=False)
class Kept:
    """A sequence (L,) from `<bos>` on, the log-probabilities (L - P,) of what was drawn, and what it earned.

    batch: the one it was drawn in, counted from 1. gain: reward - mean reward of its group.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    condition: Condition
    label: str
    reward: float
    gain: float
    batch: int


class Replay:
    """The kept sequences. settings: those under `replay`. batches: that the run has learnt from so far."""

    def __init__(self, settings: Any):
        self.settings = settings
        self.kept: list[Kept] = []
        self.batches = 0
        self.meaning = ""

    def begin(self, meaning: str) -> None:
        """Say what rewards mean from now on: those that were earned under another meaning are forgotten."""
        if meaning != self.meaning:
            self.kept, self.meaning = [], meaning

    def choose(self, groups: int, rng: np.random.Generator) -> list[list[Kept]]:
        """For `fraction` of the groups the sequences that complete each: up to `rows`, of one condition."""
        fresh_enough = [one for one in self.kept if self.batches - one.batch < self.settings.age]
        chosen: list[list[Kept]] = []
        for i in rng.permutation(len(fresh_enough)).tolist():
            if len(chosen) == round(self.settings.fraction * groups):
                break
            condition = fresh_enough[i].condition
            if all(group[0].condition != condition for group in chosen):
                alike = [one for one in fresh_enough if one.condition == condition and one is not fresh_enough[i]]
                chosen.append([fresh_enough[i], *alike][: self.settings.rows])
        return chosen

    def add(self, rollout: Rollout, rewards: np.ndarray, labels: Sequence[str | None]) -> None:
        """Keep the best of each group of a rollout's fresh rows, with rewards (B,) of all rows and labels of the fresh.

        A crystal is kept once, a prototype `per_prototype` times, and `size` sequences in all: those of most gain.
        """
        self.batches += 1
        if not self.settings.fraction:
            return
        fresh = np.flatnonzero(~rollout.replayed.cpu().numpy())
        label_of = dict(zip(fresh.tolist(), labels, strict=True))
        known = {one.label for one in self.kept}
        for g in np.unique(rollout.group.numpy()[fresh]):
            rows = fresh[rollout.group.numpy()[fresh] == g]
            best = int(rows[np.argmax(rewards[rows])])
            label, gain = label_of[best], float(rewards[best] - rewards[rows].mean())
            if label is not None and read_label(label) is not None and gain > 0 and label not in known:
                known.add(label)
                mask = rollout.mask[best]
                prompt = rollout.ids.shape[1] - len(mask)
                ids = torch.cat([rollout.ids[best, :prompt], rollout.ids[best, prompt:][mask]])
                self.kept.append(Kept(ids.cpu().numpy(), rollout.logprobs[best][mask].cpu().numpy(),
                                      dict(rollout.conditions[best]), label, float(rewards[best]), gain, self.batches))
        self._prune()

    def _prune(self) -> None:
        alive = [one for one in self.kept if self.batches - one.batch < self.settings.age]
        crowd: Counter[str] = Counter()
        self.kept = []
        for one in sorted(alive, key=lambda one: -one.gain):
            prototype = _prototype(one.label)
            if crowd[prototype] < self.settings.per_prototype and len(self.kept) < self.settings.size:
                crowd[prototype] += 1
                self.kept.append(one)

    def scalars(self, rollout: Rollout) -> dict[str, float]:
        """How many are kept, and of a rollout how many rows are replayed and what they earned."""
        if not self.settings.fraction:
            return {}
        earned = [] if rollout.earned is None else rollout.earned[rollout.replayed.cpu()].tolist()
        return {"replay/kept": float(len(self.kept)), "replay/rows": float(len(earned)),
                "replay/reward": float(np.mean(earned)) if earned else 0.0}

    def state(self) -> dict[str, Any]:
        """For `checkpoint.save_state`."""
        return {"batches": self.batches, "meaning": self.meaning,
                "kept": [vars(one) | {"condition": dict(one.condition)} for one in self.kept]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.batches, self.meaning = state["batches"], state["meaning"]
        self.kept = [Kept(**one) for one in state["kept"]]


def complete(rollout: Rollout, chosen: Sequence[Sequence[Kept]], pad: int) -> Rollout:
    """The rollout of fresh rows with those chosen for its first groups, each at the end of its group."""
    added = [(g, one) for g, group in enumerate(chosen) for one in group]
    if not added:
        return rollout
    rows, old = len(rollout.ids), rollout.ids.shape[1]
    prompt = old - rollout.mask.shape[1]
    length = max(old, *(len(one.ids) for _, one in added))
    device = rollout.ids.device
    ids = torch.full((rows + len(added), length), pad, dtype=rollout.ids.dtype, device=device)
    logprobs = torch.zeros(len(ids), length - prompt, device=device)
    ids[:rows, :old], logprobs[:rows, : old - prompt] = rollout.ids, rollout.logprobs
    earned = torch.full((len(ids),), torch.nan, dtype=torch.float64)
    for i, (_, one) in enumerate(added, start=rows):
        ids[i, : len(one.ids)] = torch.from_numpy(one.ids)
        logprobs[i, : len(one.logprobs)] = torch.from_numpy(one.logprobs)
        earned[i] = one.reward
    group = torch.cat([rollout.group, torch.tensor([g for g, _ in added])])
    order = torch.argsort(group, stable=True)
    conditions = rollout.conditions + [one.condition for _, one in added]
    there = order.to(device)
    return replace(rollout, ids=ids[there], logprobs=logprobs[there], mask=ids[there][:, prompt:] != pad,
                   group=group[order], conditions=[conditions[i] for i in order.tolist()],
                   replayed=there >= rows, earned=earned[order])


def _prototype(label: str) -> str:
    found = read_label(label)
    assert found is not None, "only labelled crystals are kept"
    return found.prototype
