"""The types that every part of rlgen shares. Imports nothing of rlgen and nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

FailureKind = Literal["parse", "chemistry", "geometry", "symmetry"]

#: What is asked of one crystal, by property name: `space_group` (1..230), `n_atoms` (atoms in the primitive cell),
#: `element` (symbol that must occur). A missing key is a property that is not asked for.
Condition = Mapping[str, Any]


class UserError(Exception):
    """A mistake of the user's (a wrong key, a missing file, a broken table): commands print it as one clear line."""


class CrystalError(ValueError):
    """A crystal that cannot be written or read, with the kind of failure it is counted under."""

    def __init__(self, kind: FailureKind, message: str):
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass
class RewardBreakdown:
    """Scores of B crystals under K rewards. All samples drawn stay in: undecodable ones are `invalid`.

    names: the K rewards. raw: (B, K) measured values in each reward's unit, NaN where nothing was measured.
    score: (B, K) in [0, 1], NaN where nothing was measured. total: (B,) in [0, 1], always finite.
    status: (B,) of "ok" | "invalid" (no valid crystal, total 0) | "failed" (some reward could not be evaluated: it
    counts 0 in the total). reason: (B,) why, "" for ok. extra: further columns (B,) to keep, e.g. `e_above_hull`.
    counters: events of the reward pool (`restarts`, `timeouts`, `failures`) and what `rlgen.counters` counted.
    """

    names: tuple[str, ...]
    raw: np.ndarray
    score: np.ndarray
    total: np.ndarray
    status: np.ndarray
    reason: list[str]
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
