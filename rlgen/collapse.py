"""Notices when a run collapses: a policy that writes ever fewer kinds of crystals can earn more and be worth nothing.

Scalars are compared with what they were at best in the run, as medians over several steps, because a batch answers a
dozen prompts, and by chance alone its space groups are spread a quarter wider or narrower. A mean would not do: one
token that the policy has all but given up can make a step's KL a thousand times the usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlgen.types import UserError

ACTIONS = ("rollback", "stop", "ignore")


class Guard:
    """Watches the scalars that the settings below `collapse` name, and counts the alarms of a run.

    A scalar's value is its median over the last `window` steps. `fall`: it may not be less than this share of the
    highest value so far; `rise`: not more than this multiple of the lowest; `above`: not more than this number. NaN is
    no number to go on with: it breaks the limits of `rise` and `above`.
    """

    def __init__(self, config: Any):
        if config.action not in ACTIONS:
            raise UserError(f"collapse.action={config.action}; known: {', '.join(ACTIONS)}")
        self.window = int(config.window)
        self.fall, self.rise, self.above = map(_limits, (config.fall, config.rise, config.above))
        self.alarms = 0
        self.full_at = self.window  # the step at which all steps of the window are there
        self.best: dict[str, float] = {}  # highest, or lowest, value so far
        self.recent: dict[str, list[list[float]]] = {}  # (step, value)

    @property
    def watched(self) -> set[str]:
        return {*self.fall, *self.rise, *self.above}

    def expect_change(self, step: int) -> None:
        """Something else is asked of the policy after this step: its diversity will be compared with what it is then.

        What may not rise, such as the likelihood of real crystals, is still compared with all of the run.
        """
        self.best = {name: value for name, value in self.best.items() if name not in self.fall}
        self.recent, self.full_at = {}, step + self.window

    def observe(self, step: int, scalars: Mapping[str, float]) -> str:
        """Take in a step; why the run has collapsed, or "". After an alarm the window is filled anew."""
        for name in self.watched & scalars.keys():
            self.recent.setdefault(name, []).append([step, float(scalars[name])])
        inside = {name: [pair for pair in pairs if pair[0] > step - self.window] for name, pairs in self.recent.items()}
        self.recent = {name: pairs for name, pairs in inside.items() if pairs}
        if step < self.full_at:
            return ""
        now = {name: float(np.median([value for _, value in pairs])) for name, pairs in self.recent.items()}
        for names, better in ((self.fall, max), (self.rise, min)):
            for name in names.keys() & now.keys():
                self.best[name] = better(self.best.get(name, now[name]), now[name])
        why = "; ".join(self._broken(now))
        if why:
            self.alarms += 1
            self.recent, self.full_at = {}, step + self.window
        return why

    def _broken(self, now: Mapping[str, float]) -> list[str]:
        """Every limit that is broken, in words."""
        best = self.best
        found = [f"{name} fell from {best[name]:.3g} to {now[name]:.3g}, below {share:g} of it"
                 for name, share in self.fall.items() if name in now and now[name] < share * best[name]]
        found += [f"{name} rose from {best[name]:.3g} to {now[name]:.3g}, above {factor:g} times as much"
                  for name, factor in self.rise.items() if name in now and not now[name] <= factor * best[name]]
        return found + [f"{name} is {now[name]:.3g}, above {limit:g}"
                        for name, limit in self.above.items() if name in now and not now[name] <= limit]

    def unmeasured(self) -> list[str]:
        """What is to be watched but is not among the scalars so far: misspelt, or of another algorithm."""
        return sorted(self.watched - self.recent.keys())

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _STATE}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for name in _STATE:
            setattr(self, name, state[name])


_STATE = ("alarms", "full_at", "best", "recent")


def _limits(limits: Mapping[str, float | None]) -> dict[str, float]:
    """A limit set to null is none."""
    return {name: float(limit) for name, limit in limits.items() if limit is not None}
