"""Notices when a run collapses: a policy that writes ever fewer kinds of crystals can earn more and be worth nothing.

Every step's scalars are compared with those of the run's first steps, as means over several steps, because a batch
answers a dozen prompts, and by chance alone its space groups are spread a quarter wider or narrower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlgen.types import UserError

ACTIONS = ("rollback", "stop", "ignore")


class Guard:
    """Watches the scalars that the settings below `collapse` name, and counts the alarms of a run.

    A scalar's value is its mean over the last `window` steps, its baseline that over the first `window` steps. `fall`:
    the value may not be less than this share of the baseline; `rise`: not more than this multiple of it; `above`: not
    more than this number. NaN is no number to go on with: it breaks the limits of `rise` and `above`.
    """

    def __init__(self, config: Any):
        if config.action not in ACTIONS:
            raise UserError(f"collapse.action={config.action}; known: {', '.join(ACTIONS)}")
        self.window = int(config.window)
        self.fall, self.rise, self.above = map(_limits, (config.fall, config.rise, config.above))
        self.alarms = 0
        self.silent_until = 2 * self.window  # a baseline and a window besides
        self.baseline_until = self.window
        self.baseline: dict[str, list[float]] = {}
        self.recent: dict[str, list[list[float]]] = {}  # (step, value)

    @property
    def watched(self) -> set[str]:
        return {*self.fall, *self.rise, *self.above}

    def expect_change(self, step: int) -> None:
        """Something else is asked of the policy after this step: its diversity will be compared with what it is then.

        What may not rise, such as the likelihood of real crystals, is still compared with the run's beginning.
        """
        self.baseline = {name: values for name, values in self.baseline.items() if name not in self.fall}
        self.recent = {}
        self.baseline_until, self.silent_until = step + self.window, step + 2 * self.window

    def observe(self, step: int, scalars: Mapping[str, float]) -> str:
        """Take in a step; why the run has collapsed, or "". After an alarm a whole window passes without another."""
        for name in self.watched & scalars.keys():
            kept = [pair for pair in self.recent.get(name, []) if pair[0] > step - self.window]
            self.recent[name] = [*kept, [step, float(scalars[name])]]
            if step <= self.baseline_until or name not in self.baseline:
                self.baseline.setdefault(name, []).append(float(scalars[name]))
        why = "; ".join(self._broken(step)) if step >= self.silent_until else ""
        if why:
            self.alarms += 1
            self.recent = {}
            self.silent_until = step + self.window
        return why

    def _broken(self, step: int) -> list[str]:
        """Every limit that is broken, in words."""
        now = {name: _mean([value for at, value in pairs if at > step - self.window])
               for name, pairs in self.recent.items() if pairs[-1][0] > step - self.window}
        first = {name: _mean(values) for name, values in self.baseline.items()}
        found = [f"{name} fell from {first[name]:.3g} to {now[name]:.3g}, below {share:g} of it"
                 for name, share in self.fall.items() if name in now and now[name] < share * first[name]]
        found += [f"{name} rose from {first[name]:.3g} to {now[name]:.3g}, above {factor:g} times as much"
                  for name, factor in self.rise.items() if name in now and not now[name] <= factor * first[name]]
        return found + [f"{name} is {now[name]:.3g}, above {limit:g}"
                        for name, limit in self.above.items() if name in now and not now[name] <= limit]

    def unmeasured(self) -> list[str]:
        """What is to be watched but is not among the scalars so far: misspelt, or of another algorithm."""
        return sorted(self.watched - self.baseline.keys())

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _STATE}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for name in _STATE:
            setattr(self, name, state[name])


_STATE = ("alarms", "silent_until", "baseline_until", "baseline", "recent")


def _limits(limits: Mapping[str, float | None]) -> dict[str, float]:
    """A limit set to null is none."""
    return {name: float(limit) for name, limit in limits.items() if limit is not None}


def _mean(values: list[float]) -> float:
    return float(np.mean(values))
