"""Formation: the energy above the hull that a crystal would have relaxed, as a model of relaxed crystals guesses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rewards.stability import Stability


@dataclass(frozen=True)
class Formation(Stability):
    """As `stability`, of the formation energy that MEGNet gives in milliseconds (docs/energies.md).

    MEGNet has seen relaxed crystals only and hardly minds coordinates that are a little off, which a potential
    punishes: the two err differently, and their mean foretells what a relaxation finds better than either.
    """

    energy: str = "megnet"

    name: ClassVar[str] = "formation"
    guards: ClassVar[str] = "guard_formation"
