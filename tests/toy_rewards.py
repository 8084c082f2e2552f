"""Rewards and crystals for the tests of the pool: importable, so that workers find them."""

import ctypes
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pymatgen.core import Lattice, Structure

from rlgen.counters import count
from rlgen.types import UserError


def rocksalt(cation: str = "Na", anion: str = "Cl", a: float = 5.6) -> Structure:
    """The cubic cell of eight atoms. Written out: from_spacegroup takes 0.1 s."""
    corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    return Structure(Lattice.cubic(a), [cation] * 4 + [anion] * 4, [*corners, *(corners + 0.5)])


def rocksalts(n: int) -> list[Structure]:
    """Rock salts of rising length."""
    return [rocksalt(a=5.0 + 0.05 * i) for i in range(n)]


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def hangs():
    time.sleep(1000)


def hangs_in_c():
    """Sleeps in C and keeps the interpreter's lock: no signal handler and no other thread of Python runs."""
    ctypes.PyDLL(None).sleep(1000)


def takes_all_memory():
    held = []
    while True:
        held.append(np.empty(50 * 2**20, dtype=np.int8))


def raises():
    raise ValueError("no such thing")


ACCIDENTS = {f.__name__: f for f in (killed, hangs, hangs_in_c, takes_all_memory, raises)}


def first_time(file: str | None) -> bool:
    """Whether the file was not there yet; it is then. Always, without a file."""
    try:
        if file:
            Path(file).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class Base:
    name: ClassVar[str] = "toy"
    unit: ClassVar[str] = "Å"
    per_sample: ClassVar[bool] = True

    def transform(self, raw):
        return np.asarray(raw) / 100.0


@dataclass(frozen=True)
class Length(Base):
    """The first cell vector's length. nan_for, raise_for: elements with which it goes wrong.

    What else goes wrong is said by the condition: `accident` (a key of ACCIDENTS), only the first time if `once` names
    a file that does not exist yet; and `sleep`, seconds that the crystal takes.
    """

    nan_for: str = ""
    raise_for: str = ""
    name: ClassVar[str] = "length"

    def measure(self, structures, conditions):
        return np.array([self._one(s, c) for s, c in zip(structures, conditions, strict=True)])

    def _one(self, structure, condition):
        count("toy/measured")
        time.sleep(condition.get("sleep", 0))
        if "accident" in condition and first_time(condition.get("once")):
            ACCIDENTS[condition["accident"]]()
        symbols = {e.symbol for e in structure.composition}
        if self.nan_for in symbols:
            return np.nan
        if self.raise_for in symbols:
            raise ZeroDivisionError("no such length")
        return structure.lattice.a


@dataclass(frozen=True)
class Starting(Length):
    """A reward that has an accident while its worker starts."""

    accident: str = "killed"
    once: str | None = None

    def warm_up(self):
        if first_time(self.once):
            ACCIDENTS[self.accident]()


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


@dataclass(frozen=True)
class NearGroup(Base):
    """1 in space group 225, less in its neighbours, nothing 30 groups away."""

    name: ClassVar[str] = "near_group"

    def measure(self, structures, conditions):
        from rlgen.reference import protostructure_label

        return np.array([abs(int(protostructure_label(s).split("_")[2]) - 225.0) for s in structures])

    def transform(self, raw):
        return np.clip(1 - np.asarray(raw) / 30, 0, 1)
