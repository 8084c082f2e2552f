"""What every algorithm learns from: crystals drawn for prompts of the data's distribution, scored, and remembered."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pymatgen.core import Structure

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from policies.sampler import Rollout, decode, sample
from rlgen import checkpoint, energies, processes, tracking
from rlgen.asking import Asking
from rlgen.config import plain
from rlgen.memory import Memory
from rlgen.metrics import exp_entropy
from rlgen.prompt_learning import PromptLearning
from rlgen.protostructure import MIRRORED, read_label
from rlgen.reference import protostructure_label
from rlgen.replay import Replay, complete
from rlgen.reward_pool import RewardPool
from rlgen.types import Condition, CrystalError, RewardBreakdown

Row = TypeVar("Row")


@dataclass
class Measured:
    """A rollout whose F fresh rows are decoded and measured, and that the run has not learned of yet.

    crystals, labels: (F,) of the rows that are not replayed; a label is None for an invalid sample.
    """

    rollout: Rollout
    crystals: list[Structure | CrystalError]
    breakdown: RewardBreakdown
    labels: list[str | None]
    seconds: float


@dataclass
class Experience:
    """One step's rollout with its reward (B,) in [0, 1] and what there is to log about its F fresh rows.

    crystals, breakdown and earned, their part of the rewards: (F,), in the order of the rollout.
    """

    rollout: Rollout
    crystals: list[Structure | CrystalError]
    breakdown: RewardBreakdown
    rewards: np.ndarray
    earned: np.ndarray
    scalars: dict[str, float] = field(default_factory=dict)


def make_rewards(config: Any) -> tuple[list, Any]:
    """The rewards that `reward=` names, with their parameters from the settings, and the parsed expression."""
    from rewards import make
    from rewards.expression import parse

    expression = parse(config.reward.expression)
    parameters = plain(config.reward)
    for name in ("stability", "condition"):
        parameters[name] = {"energy": config.energy} | parameters[name]
    train = "shipped:train" if config.data == "shipped" else f"{config.data}:train"
    parameters["novelty"] = {"reference": train} | parameters["novelty"]
    return [make(name, **parameters.get(name, {})) for name in expression.names], expression


def tell_scales(config: Any, policy: CrystalPolicy) -> None:
    """The condition reward measures distances on the scales on which the policy is told what is asked."""
    told = {name: scale.to_dict() for name, scale in policy.representation.conditions.items()}
    if told:
        given = plain(config.reward.condition)
        config.reward.condition = given | {"scales": told | given.get("scales", {})}


def resolve_energies(config: Any) -> None:
    """Settle `energy` and `judge` to the potentials that will be used. The judge is the other one where there is."""
    config.energy = energies.resolve(config.energy)
    if config.judge == "auto":
        config.judge = "chgnet" if config.energy != "chgnet" else energies.resolve("auto")
    config.judge = energies.resolve(config.judge)
    if config.evaluate:
        energies.must_relax(config.judge)


class Collector:
    """Draws and scores. All randomness of a step follows from (seed, step), so that a resumed run is the same run."""

    pool: RewardPool | None

    def __init__(self, prompts: PromptTable, config: Any):
        self.config = config
        self.memory = Memory(config.memory, lambda group, n_atoms: self._asked[group, n_atoms])
        self.replay = Replay(config.replay)
        self.learning = PromptLearning(prompts)

    @property
    def prompts(self) -> PromptTable:
        """What is asked now."""
        return self.learning.current if self.config.prompts.diversity < 1 else self.learning.prompts

    def enter(self, pool: RewardPool | None, config: Any) -> None:
        """From now on score with this pool, which only the first process has, by the settings of the run's stage."""
        self.pool, self.config = pool, config
        self.asking = Asking(self.learning.prompts, config)
        self._asked: dict[tuple[int, int], float] = defaultdict(float)
        if not self.asking.asked:
            self._count_asked(self.learning.prompts.shares(config.prompts.power))
        #: Rewards earned under another are no longer comparable.
        self.meaning = f"{plain(config.reward)}, {config.energy}, off_prompt {config.off_prompt}"
        self.replay.begin(self.meaning)

    def _count_asked(self, shares: Mapping[tuple[int, int], float]) -> None:
        """How much of what is asked for goes to each space group and size; mirror images count together."""
        for (group, n_atoms), share in shares.items():
            self._asked[MIRRORED.get(group, group), n_atoms] += share

    def draw(self, policy: CrystalPolicy, step: int) -> Rollout:
        """`batch` sequences: groups of `group_size`, each answering one prompt, drawn from the data's or replayed."""
        size = self.config.algorithm.group_size
        rng = np.random.default_rng([self.config.seed, 3, step])
        if not self._asked:
            self._count_asked(self.asking.shares(policy))
        self.asking.prompts = self.prompts
        conditions = self.asking.draw(self.config.batch // size, rng, policy)
        generator = torch.Generator(policy.device).manual_seed(int(rng.integers(2**62)) + processes.index())
        chosen = self.replay.choose(len(conditions), rng)
        conditions[: len(chosen)] = [kept[0].condition for kept in chosen]
        replayed = [len(kept) for kept in chosen] + [0] * (len(conditions) - len(chosen))
        mine = range(processes.index(), len(conditions), processes.count())
        group = [g for g in mine for _ in range(size - replayed[g])]
        drawn = sample(policy, [conditions[g] for g in group], generator,
                       temperature=self.config.algorithm.temperature, group=group)
        drawn = processes.gathered(drawn, policy.representation.pad)
        return complete(drawn, chosen, policy.representation.pad)

    def score(self, policy: CrystalPolicy, rollout: Rollout) -> Experience:
        """Decode, measure and remember a rollout."""
        return self.remember(self.measure(policy, rollout))

    def measure(self, policy: CrystalPolicy, rollout: Rollout) -> Measured:
        """Decode and measure a rollout's fresh rows. It changes nothing of the run, so that another thread may do it
        meanwhile."""
        return Measured(rollout, *processes.from_first(lambda: self._measure(policy, rollout)))

    def _measure(self, policy: CrystalPolicy, rollout: Rollout) -> tuple:
        assert self.pool is not None
        started = time.monotonic()
        crystals = _fresh(rollout, decode(policy, rollout))
        breakdown = self.pool.score(crystals, _fresh(rollout, rollout.conditions))
        labels = [protostructure_label(crystal) if isinstance(crystal, Structure) and status != "invalid" else None
                  for crystal, status in zip(crystals, breakdown.status, strict=True)]
        return crystals, breakdown, labels, time.monotonic() - started

    def remember(self, measured: Measured) -> Experience:
        """What a measured rollout earns in this run, which now knows it.

        What was written before earns what the memory leaves of its total; what is not in the space group asked for
        earns `off_prompt` of it, without which it would pay to answer every prompt with what is easiest.
        """
        rollout, breakdown, labels = measured.rollout, measured.breakdown, measured.labels
        conditions = _fresh(rollout, rollout.conditions)
        answered = np.array([_answers(label, c) for label, c in zip(labels, conditions, strict=True)])
        discount = self.memory.discount(labels, breakdown.total) * np.where(answered, 1.0, self.config.off_prompt)
        breakdown.extra |= {"label": np.array(labels, dtype=object), "discount": discount,
                            "condition": np.array(conditions, dtype=object)}
        earned = breakdown.total * discount
        rewards = earned if rollout.earned is None else rollout.earned.numpy().copy()
        rewards[~rollout.replayed.cpu().numpy()] = earned
        self.replay.add(rollout, rewards, labels)
        if self.config.prompts.diversity < 1:
            self.learning.observe(conditions, earned, self.config.prompts.diversity)
        flags = _flags(breakdown, labels)
        for i in np.flatnonzero(flags.get("sun", [])):
            self.memory.add_sun(str(labels[i]))
        scalars = tracking.breakdown_scalars(breakdown) | _diversity(labels) | self.memory.scalars()
        scalars |= {f"sample/{share}": float(flag.mean()) for share, flag in flags.items()}
        scalars["sample/space_group_match"] = float(answered.mean())
        scalars |= _spread(rewards, rollout.group.numpy()) | self.replay.scalars(rollout)
        if self.config.prompts.diversity < 1:
            scalars |= self.learning.scalars()
        scalars |= {"reward/learned": float(earned.mean()),
                    "reward/discount": float(discount.mean()),
                    "time/reward": measured.seconds}
        return Experience(rollout, measured.crystals, breakdown, rewards, earned, scalars)

    def save(self, folder: Path) -> None:
        """What was found so far, for a checkpoint."""
        checkpoint.save_state(folder / "memory", {"memory": self.memory.state(), "replay": self.replay.state(),
                                                  "prompts": self.learning.state()})

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote; the collector must be a new one."""
        state = checkpoint.load_state(folder / "memory")
        self.memory.load_state(state["memory"])
        self.replay.load_state(state["replay"])
        self.learning.load_state(state["prompts"])


def _fresh(rollout: Rollout, rows: Sequence[Row]) -> list[Row]:
    """Those of a rollout's rows (B,) that were drawn by the policy of this step."""
    return [row for row, replayed in zip(rows, rollout.replayed.tolist(), strict=True) if not replayed]


def _answers(label: str | None, condition: Condition) -> bool:
    """Whether a crystal, by its label, is in the space group that was asked for, if one was."""
    found = None if label is None else read_label(label)
    asked = condition.get("space_group")
    return found is not None and (asked is None or found.space_group == MIRRORED.get(asked, asked))


def _flags(breakdown: RewardBreakdown, labels: list[str | None]) -> dict[str, np.ndarray]:
    """Which of all samples (B,) are novel, (meta)stable and S.U.N., as far as the rewards measured them.

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
    return flags


def _diversity(labels: list[str | None]) -> dict[str, float]:
    """Spread of a batch, and its share of different crystals; shares are of all samples, the rest of labelled ones."""
    known = [(label, read) for label in labels if label is not None and (read := read_label(label)) is not None]
    found = [read for _, read in known]
    groups = Counter(one.space_group for one in found)
    spread: dict[str, list[Any]] = {"space_groups": [one.space_group for one in found],
                                    "prototypes": [one.prototype for one in found],
                                    "elements": [element for one in found for element in one.elements]}
    return {f"diversity/{name}": exp_entropy(values) if values else 0.0 for name, values in spread.items()} | {
        "diversity/top_space_group": max(groups.values(), default=0) / len(labels),
        "sample/unique": len({label for label, _ in known}) / len(labels),
        "diversity/n_atoms": float(np.mean([one.n_atoms for one in found])) if found else 0.0}


def _spread(rewards: np.ndarray, group: np.ndarray) -> dict[str, float]:
    """Standard deviation of what a batch earns, and the share of its groups that all earn the same: they teach nothing.
    """
    equal = [bool(np.ptp(rewards[group == g]) == 0) for g in np.unique(group)]
    return {"reward/std": float(rewards.std()), "reward/equal_groups": float(np.mean(equal))}
