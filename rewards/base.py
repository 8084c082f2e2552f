"""The contract of a reward: a small frozen dataclass that measures crystals and maps the measure to [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from pymatgen.core import Structure

from rlgen.types import Condition


@runtime_checkable
class Reward(Protocol):
    """A frozen dataclass whose fields are its parameters (they come from `configs/reward/<name>.yaml`).

    `measure` gives the raw value (B,) in the reward's own unit, NaN where it could not be evaluated; `transform` maps
    raw values to scores (B,) in [0, 1], 1 = best, NaN kept. Only valid crystals are ever measured. A reward with
    `per_sample = False` looks at the batch as a whole and is never sharded over workers. Heavy resources (potentials,
    references) come from loaders that are cached per process, so that a reward stays cheap to send to a worker.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    per_sample: ClassVar[bool]

    def measure(self, structures: Sequence[Structure], conditions: Sequence[Condition]) -> np.ndarray: ...

    def transform(self, raw: np.ndarray) -> np.ndarray: ...
