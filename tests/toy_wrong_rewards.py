"""A reward that is right, and one for each thing that can be wrong with one: importable, as a user's own are."""

import itertools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

_calls = itertools.count()


class Density:
    """Up to 20 g/cm³."""

    name: ClassVar[Any] = "my_density"
    unit: ClassVar[Any] = "g/cm³"
    per_sample: ClassVar[Any] = True

    def measure(self, structures, conditions):
        return np.array([float(s.density) for s in structures])

    def transform(self, raw):
        return np.clip(np.asarray(raw) / 20, 0, 1)


@dataclass(frozen=True)
class Right(Density):
    most: float = 20.0

    def transform(self, raw):
        return np.clip(np.asarray(raw) / self.most, 0, 1)


@dataclass
class NotFrozen(Density):
    pass


@dataclass(frozen=True)
class TakenName(Density):
    name: ClassVar[str] = "novelty"


@dataclass(frozen=True)
class NoShape(Density):
    def measure(self, structures, conditions):
        return float(np.mean([s.density for s in structures]))


@dataclass(frozen=True)
class Infinite(Density):
    def measure(self, structures, conditions):
        return np.array([np.inf if len(s) < 3 else 1.0 for s in structures])


@dataclass(frozen=True)
class Nothing(Density):
    def measure(self, structures, conditions):
        return np.full(len(structures), np.nan)


@dataclass(frozen=True)
class TooHigh(Density):
    def transform(self, raw):
        return np.asarray(raw)


@dataclass(frozen=True)
class PaysForNaN(Density):
    def transform(self, raw):
        return np.nan_to_num(super().transform(raw), nan=1.0)


@dataclass(frozen=True)
class Relative(Density):
    """Says that it is a crystal's own, and compares with the batch."""

    def measure(self, structures, conditions):
        density = super().measure(structures, conditions)
        return density / density.max()


@dataclass(frozen=True)
class OfThePlace(Density):
    per_sample: ClassVar[bool] = False

    def measure(self, structures, conditions):
        return np.arange(len(structures), dtype=float)


@dataclass(frozen=True)
class Random(Density):
    def measure(self, structures, conditions):
        return np.array([float(next(_calls)) for _ in structures])


@dataclass(frozen=True)
class Stretches(Density):
    """Changes the crystals that it is given."""

    def measure(self, structures, conditions):
        found = super().measure(structures, conditions)
        for structure in structures:
            structure.scale_lattice(structure.volume * 1.01)
        return found


@dataclass(frozen=True)
class ChangesRaw(Density):
    def transform(self, raw):
        raw /= 40
        return np.clip(raw, 0, 1)


@dataclass(frozen=True)
class Stays(Density):
    """Holds what cannot be sent anywhere."""

    function: Any = field(default_factory=lambda: lambda: 1)


@dataclass(frozen=True)
class Raises(Density):
    def measure(self, structures, conditions):
        return np.array([1 / (len(s.composition) - 1) for s in structures])


@dataclass(frozen=True)
class NeedsToBeAsked(Density):
    def measure(self, structures, conditions):
        return np.array([float(c["density"]) for c in conditions])


@dataclass(frozen=True)
class Constant(Density):
    def measure(self, structures, conditions):
        return np.ones(len(structures))


@dataclass(frozen=True)
class Shared(Density):
    """Could be shared among workers."""

    per_sample: ClassVar[bool] = False
