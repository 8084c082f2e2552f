"""Rewards for the tests of the pool: importable, so that workers find them."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from rlgen.counters import count
from rlgen.types import UserError


@dataclass(frozen=True)
class Base:
    name: ClassVar[str] = "toy"
    unit: ClassVar[str] = "Å"
    per_sample: ClassVar[bool] = True

    def transform(self, raw):
        return np.asarray(raw) / 100.0


@dataclass(frozen=True)
class Length(Base):
    """The first cell vector's length. nan_for, raise_for, kill_for, hang_for: elements with which it goes wrong.

    once: a folder; with it, the element kills or hangs only the first time.
    """

    nan_for: str = ""
    raise_for: str = ""
    kill_for: str = ""
    hang_for: str = ""
    once: str = ""
    delay: float = 0.0
    name: ClassVar[str] = "length"

    def measure(self, structures, conditions):
        return np.array([self._one(s) for s in structures])

    def _one(self, structure):
        count("toy/measured")
        time.sleep(self.delay)
        symbols = {e.symbol for e in structure.composition}
        if self.nan_for in symbols:
            return np.nan
        if self.raise_for in symbols:
            raise ZeroDivisionError("no such length")
        if self.kill_for in symbols and self._first_time():
            os.kill(os.getpid(), signal.SIGKILL)
        if self.hang_for in symbols and self._first_time():
            time.sleep(1000)
        return structure.lattice.a

    def _first_time(self):
        if not self.once:
            return True
        try:
            Path(self.once, "was_here").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True)
class Asked(Base):
    """Atoms asked for minus atoms present, plus 50."""

    name: ClassVar[str] = "asked"

    def measure(self, structures, conditions):
        return np.array([50.0 + c.get("n_atoms", 0) - len(s) for s, c in zip(structures, conditions, strict=True)])


@dataclass(frozen=True)
class Rank(Base):
    """A reward on the batch: the rank of the cell's volume. hangs: for ever."""

    hangs: bool = False
    name: ClassVar[str] = "rank"
    per_sample: ClassVar[bool] = False
    in_worker: ClassVar[bool] = True

    def measure(self, structures, conditions):
        if self.hangs:
            time.sleep(1000)
        return np.argsort(np.argsort([s.volume for s in structures], kind="stable")).astype(float)


@dataclass(frozen=True)
class Misconfigured(Base):
    name: ClassVar[str] = "misconfigured"

    def measure(self, structures, conditions):
        raise UserError("the weights are missing")


@dataclass(frozen=True)
class WithReasons(Base):
    name: ClassVar[str] = "with_reasons"

    def measure_with_reasons(self, structures, conditions):
        return np.full(len(structures), np.nan), ["too hard"] * len(structures)

    def measure(self, structures, conditions):
        raise AssertionError("reasons were to be asked for")


@dataclass(frozen=True)
class TooHigh(Base):
    name: ClassVar[str] = "too_high"

    def measure(self, structures, conditions):
        return np.full(len(structures), 300.0)
