"""What every algorithm learns from: crystals drawn for prompts of the data's distribution, scored, and remembered."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pymatgen.core import Structure

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from policies.sampler import Rollout, decode, sample
from rlgen import energies, tracking
from rlgen.config import plain
from rlgen.memory import Memory
from rlgen.metrics import exp_entropy
from rlgen.reference import MIRRORED, UNLABELLED, protostructure_label
from rlgen.reward_pool import RewardPool
from rlgen.types import Condition, CrystalError, RewardBreakdown


@dataclass
class Measured:
    """A rollout, decoded and measured, that the run has not learned of yet. labels: (B,) None for an invalid sample."""

    rollout: Rollout
    crystals: list[Structure | CrystalError]
    breakdown: RewardBreakdown
    labels: list[str | None]
    seconds: float


@dataclass
class Experience:
    """One step's rollout with its reward (B,) in [0, 1] and what there is to log about it."""

    rollout: Rollout
    crystals: list[Structure | CrystalError]
    breakdown: RewardBreakdown
    rewards: np.ndarray
    scalars: dict[str, float] = field(default_factory=dict)


def make_rewards(config: Any) -> tuple[list, Any]:
    """The rewards that `reward=` names, with their parameters from the settings, and the parsed expression."""
    from rewards import make
    from rewards.expression import parse

    expression = parse(config.reward.expression)
    parameters = plain(config.reward)
    parameters["stability"] = {"energy": config.energy} | parameters["stability"]
    train = "shipped:train" if config.data == "shipped" else f"{config.data}:train"
    parameters["novelty"] = {"reference": train} | parameters["novelty"]
    return [make(name, **parameters.get(name, {})) for name in expression.names], expression


def resolve_energies(config: Any) -> None:
    """Settle `energy` and `judge` to the potentials that will be used. The judge is the other one where there is."""
    config.energy = energies.resolve(config.energy)
    if config.judge == "auto":
        config.judge = "chgnet" if config.energy != "chgnet" else energies.resolve("auto")
    config.judge = energies.resolve(config.judge)


class Collector:
    """Draws and scores. All randomness of a step follows from (seed, step), so that a resumed run is the same run."""

    def __init__(self, prompts: PromptTable, pool: RewardPool, memory: Memory, config: Any):
        self.prompts, self.pool, self.memory, self.config = prompts, pool, memory, config

    def draw(self, policy: CrystalPolicy, step: int) -> Rollout:
        """`batch` sequences: groups of `group_size`, each group answering one prompt of the data's distribution."""
        size = self.config.algorithm.group_size
        rng = np.random.default_rng([self.config.seed, 3, step])
        conditions = self.prompts.sample(self.config.batch // size, rng)
        generator = torch.Generator(policy.device).manual_seed(int(rng.integers(2**62)))
        return sample(policy, [c for c in conditions for _ in range(size)], generator,
                      temperature=self.config.algorithm.temperature,
                      group=[g for g in range(len(conditions)) for _ in range(size)])

    def score(self, policy: CrystalPolicy, rollout: Rollout) -> Experience:
        """Decode, measure and remember a rollout."""
        return self.remember(self.measure(policy, rollout))

    def measure(self, policy: CrystalPolicy, rollout: Rollout) -> Measured:
        """Decode and measure a rollout. It changes nothing of the run, so that another thread may do it meanwhile."""
        started = time.monotonic()
        crystals = decode(policy, rollout)
        breakdown = self.pool.score(crystals, rollout.conditions)
        labels = [protostructure_label(crystal) if isinstance(crystal, Structure) and status != "invalid" else None
                  for crystal, status in zip(crystals, breakdown.status, strict=True)]
        return Measured(rollout, crystals, breakdown, labels, time.monotonic() - started)

    def remember(self, measured: Measured) -> Experience:
        """What a measured rollout earns in this run, which now knows it.

        A crystal that was written n times before earns 1/(1 + n) of its total; one that is not in the space group asked
        for earns `off_prompt` of it, without which it would pay to answer every prompt with what is easiest.
        """
        rollout, breakdown, labels = measured.rollout, measured.breakdown, measured.labels
        answered = np.array([_answers(label, c) for label, c in zip(labels, rollout.conditions, strict=True)])
        discount = self.memory.discount(labels) * np.where(answered, 1.0, self.config.off_prompt)
        breakdown.extra |= {"label": np.array(labels, dtype=object), "discount": discount,
                            "condition": np.array(rollout.conditions, dtype=object)}
        scalars = tracking.breakdown_scalars(breakdown) | _shares(breakdown, labels) | _diversity(labels)
        # Policies write primitive cells.
        sizes = [len(c) for c, label in zip(measured.crystals, labels, strict=True) if label is not None]
        scalars["diversity/n_atoms"] = float(np.mean(sizes)) if sizes else 0.0
        scalars["sample/space_group_match"] = float(answered.mean())
        scalars |= _spread(breakdown.total * discount, rollout.group.numpy())
        scalars |= {"reward/learned": float((breakdown.total * discount).mean()),
                    "reward/discount": float(discount.mean()),
                    "memory/crystals": float(len(self.memory.crystals)),
                    "time/reward": measured.seconds}
        return Experience(rollout, measured.crystals, breakdown, breakdown.total * discount, scalars)


def _answers(label: str | None, condition: Condition) -> bool:
    """Whether a crystal, by its label, is in the space group that was asked for, if one was."""
    if label is None or label.endswith(UNLABELLED):
        return False
    asked = condition.get("space_group")
    return asked is None or int(label.split("_")[2]) == MIRRORED.get(asked, asked)


def _shares(breakdown: RewardBreakdown, labels: list[str | None]) -> dict[str, float]:
    """Shares of novel, (meta)stable and S.U.N. crystals among all samples, as far as the rewards measured them.

    Stable is at most 0.1 eV/atom above the hull, as the reward sees the crystal; unique is the first of its label in
    the batch.
    """
    flags = {}
    raw = dict(zip(breakdown.names, breakdown.raw.T, strict=True))
    if "novelty" in raw:
        flags["novel"] = raw["novelty"] == 1  # False where it is NaN, here and below
    if "stability" in raw:
        flags["stable"] = raw["stability"] <= 0.1
    if len(flags) == 2:
        unique = [label is not None and label not in labels[:i] for i, label in enumerate(labels)]
        flags["sun"] = flags["novel"] & flags["stable"] & np.array(unique)
    return {f"sample/{share}": float(flag.mean()) for share, flag in flags.items()}


def _diversity(labels: list[str | None]) -> dict[str, float]:
    """Spread of a batch, and its share of different crystals; all samples in the denominator."""
    known = [label for label in labels if label is not None and not label.endswith(UNLABELLED)]
    groups = [label.split("_")[2] for label in known]
    elements = [e for label in known for e in label.rsplit(":", 1)[1].split("-")]
    return {"sample/unique": len(set(known)) / len(labels),
            "diversity/space_groups": exp_entropy(groups) if groups else 0.0,
            "diversity/elements": exp_entropy(elements) if elements else 0.0,
            "diversity/prototypes": exp_entropy(label.rsplit(":", 1)[0] for label in known) if known else 0.0}


def _spread(rewards: np.ndarray, group: np.ndarray) -> dict[str, float]:
    """Standard deviation of what a batch earns, and the share of its groups that all earn the same: they teach nothing.
    """
    equal = [bool(np.ptp(rewards[group == g]) == 0) for g in np.unique(group)]
    return {"reward/std": float(rewards.std()), "reward/equal_groups": float(np.mean(equal))}
