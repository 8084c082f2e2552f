"""A curriculum: stages of a run, each with a reward, a number of steps, and a condition on which it ends earlier.

    stages:
      - reward: validity
        steps: 40
        until: sample/valid > 0.95 over 5
      - reward: novelty*stability
        steps: 100
        algorithm.temperature: 0.9
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from yaml import YAMLError

from rlgen.config import changed
from rlgen.types import UserError

#: Settings that a stage may change: those that are read anew for every batch. A final dot: everything below.
CHANGEABLE = ("reward.", "prompts.", "off_prompt", "algorithm.temperature")
_COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_UNTIL = re.compile(r"\s*(?P<name>\S+)\s*(?P<sign>[<>]=?)\s*(?P<limit>[-+\d.e]+)(?:\s+over\s+(?P<steps>\d+))?\s*")


@dataclass(frozen=True)
class Until:
    """`sample/valid > 0.95 over 5`: whether the mean of a scalar over the stage's last steps is beyond a limit."""

    name: str
    sign: str
    limit: float
    steps: int = 1

    @classmethod
    def parse(cls, text: str) -> Until:
        match = _UNTIL.fullmatch(text)
        try:
            assert match is not None
            return cls(match["name"], match["sign"], float(match["limit"]), int(match["steps"] or 1))
        except (AssertionError, ValueError):
            raise UserError(f"until: {text!r} is not like 'sample/valid > 0.95' or 'reward/total >= 0.5 over 10'"
                            ) from None

    def met(self, values: list[float]) -> bool:
        return len(values) >= self.steps and bool(_COMPARE[self.sign](np.mean(values[-self.steps :]), self.limit))


@dataclass(frozen=True)
class Stage:
    """name, steps at most, and the run's settings with those of the stage."""

    name: str
    steps: int
    until: Until | None
    config: Any


class Stages:
    """The stages of a run and where it is in them. A run without `stages` has one."""

    def __init__(self, config: Any):
        written = [_stage(config, i, entry) for i, entry in enumerate(config.stages)]
        self.stages = written or [Stage("", config.steps, None, config)]
        self.index, self.began = 0, 0
        self.values: list[float] = []  # of `until`, this stage's last
        self.met = False

    @property
    def stage(self) -> Stage:
        """The one that the run is in."""
        return self.stages[self.index]

    @property
    def steps(self) -> int:
        """Of the run, at most."""
        return self.began + sum(stage.steps for stage in self.stages[self.index :])

    @property
    def last_step(self) -> int:
        """Of this stage, at most."""
        return self.began + self.stage.steps

    def observe(self, scalars: Mapping[str, float]) -> None:
        """Take in a step of this stage."""
        until = self.stage.until
        if until is not None:
            if until.name not in scalars:
                raise UserError(f"until: {until.name!r} is not measured; measured: {', '.join(sorted(scalars))}")
            self.values = [*self.values, float(scalars[until.name])][-until.steps :]
            self.met = until.met(self.values)

    def over(self, step: int) -> bool:
        return self.met or step >= self.last_step

    def advance(self, step: int) -> bool:
        """Enter the next stage after this step; False where there is none."""
        if self.index + 1 == len(self.stages):
            return False
        self.index, self.began, self.values, self.met = self.index + 1, step, [], False
        return True

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _STATE}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """UserError where there is no such stage any more."""
        if state["index"] >= len(self.stages):
            raise UserError(f"the run is in stage {state['index'] + 1}, but there are only {len(self.stages)}")
        for name in _STATE:
            setattr(self, name, state[name])


_STATE = ("index", "began", "values", "met")


def read(stages: Any) -> list[dict[str, Any]]:
    """Stages from a YAML file, YAML text that starts with [, or a list. UserError where it is none of them."""
    source = str(stages)
    if isinstance(stages, str):
        from omegaconf import OmegaConf

        if not stages.startswith("[") and not Path(stages).is_file():
            raise UserError(f"stages={stages}: no such file; give a YAML file with a list of stages")
        try:
            stages = OmegaConf.create(stages if stages.startswith("[") else Path(stages).read_text(encoding="utf-8"))
        except YAMLError as error:
            raise UserError(f"stages={source}: {error}") from error
        stages = OmegaConf.to_container(stages)
    if isinstance(stages, dict) and set(stages) == {"stages"}:
        stages = stages["stages"]
    if not isinstance(stages, Sequence) or not all(isinstance(entry, Mapping) for entry in stages):
        raise UserError(f"stages={source}: must be a list of stages, each with reward, steps, until, …")
    for index, entry in enumerate(stages):
        if not isinstance(entry.get("steps"), int) or entry["steps"] < 1:
            raise UserError(f"stages[{index}]: steps={entry.get('steps')}: must be given, at least 1")
    return [dict(entry) for entry in stages]


def _stage(config: Any, index: int, entry: Mapping[str, Any]) -> Stage:
    where, settings = f"stages[{index}]", {str(key): value for key, value in entry.items()}
    name, until, steps = str(settings.pop("name", index + 1)), settings.pop("until", None), settings.pop("steps")
    settings = {"reward.expression" if key == "reward" else key: value for key, value in settings.items()}
    for key in settings:
        if not key.startswith(tuple(CHANGEABLE)):
            raise UserError(f"{where}: {key} cannot change from stage to stage; known: name, reward, steps, until, "
                            f"{', '.join(key + '…' if key.endswith('.') else key for key in CHANGEABLE)}")
    try:
        return Stage(name, steps, None if until is None else Until.parse(str(until)),
                     changed("finetune", config, settings))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
