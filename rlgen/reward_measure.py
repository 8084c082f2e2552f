"""Rewards measured on crystals that travel as arrays. Workers and the in-process pool run this same code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from pymatgen.core import Element, Lattice, Structure

from rewards.base import Reward
from rlgen import counters
from rlgen.types import Condition, UserError

#: One crystal on its way to a worker: lattice (3, 3) Å, atomic numbers (N,), fractional coordinates (N, 3). A pickled
#: Structure is four times as large and costs 17 times as much.
Payload = tuple[np.ndarray, np.ndarray, np.ndarray]
#: What one reward measured: raw (n,), why a value is NaN (n), whether an exception or a lost worker is to blame (n,),
#: and further columns (n,) to keep.
Measured = tuple[np.ndarray, list[str], np.ndarray, dict[str, np.ndarray]]


def pack(structure: Structure) -> Payload:
    """A crystal as arrays."""
    numbers = np.array(structure.atomic_numbers, dtype=np.int16)
    return np.array(structure.lattice.matrix), numbers, np.array(structure.frac_coords)


def unpack(payload: Payload) -> Structure:
    """The crystal of the arrays, without oxidation states or site properties."""
    lattice, numbers, frac = payload
    return Structure(Lattice(lattice), [_element(int(z)) for z in numbers], frac)


@cache
def _element(number: int) -> Element:
    # from_Z searches the table anew each time, which would be most of the cost of a crystal.
    return Element.from_Z(number)


def measure(
    rewards: Sequence[Reward], payloads: Sequence[Payload], conditions: Sequence[Condition]
) -> tuple[list[Measured], Counter[str]]:
    """Every reward on the same crystals, and the events counted over it. Runs in a worker, or in-process without."""
    structures = [unpack(p) for p in payloads]
    return [_measure_one(reward, structures, conditions) for reward in rewards], counters.drain()


def _measure_one(reward: Reward, structures: list[Structure], conditions: Sequence[Condition]) -> Measured:
    n = len(structures)
    columns: dict[str, np.ndarray] = {}
    try:
        if hasattr(reward, "measure_with_columns"):
            values, reasons, columns = reward.measure_with_columns(structures, conditions)
        elif hasattr(reward, "measure_with_reasons"):
            values, reasons = reward.measure_with_reasons(structures, conditions)
        else:
            values, reasons = reward.measure(structures, conditions), [""] * n
        raw = np.array(values, dtype=float)
        if raw.shape != (n,) or len(reasons) != n or any(np.shape(column) != (n,) for column in columns.values()):
            raise ValueError(f"measured {raw.shape} values and {len(reasons)} reasons for {n} crystals")
    except UserError:
        raise
    except Exception as error:  # whatever a user's reward throws costs its crystal the score, not the run
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError) or "allocate" in str(error):  # torch has a RuntimeError for it
            counters.count("out_of_memory")
    else:
        bad = ~np.isfinite(raw)
        reasons = [(r or f"measured {v}") if b else "" for r, v, b in zip(reasons, raw, bad, strict=True)]
        raw[bad] = np.nan
        return raw, reasons, np.zeros(n, dtype=bool), columns
    # Not in the handler: as long as the exception lives, so does the memory that was not enough.
    if n == 1 or not reward.per_sample:
        return lost(n, why)
    singles = [_measure_one(reward, [s], [c]) for s, c in zip(structures, conditions, strict=True)]
    names = dict.fromkeys(name for s in singles for name in s[3])
    return (
        np.concatenate([s[0] for s in singles]),
        [reason for s in singles for reason in s[1]],
        np.concatenate([s[2] for s in singles]),
        {name: np.concatenate([s[3].get(name, [np.nan]) for s in singles]) for name in names},
    )


def lost(n: int, why: str) -> Measured:
    """What is known of n crystals over which a reward raised, or a worker was lost."""
    return np.full(n, np.nan), [why] * n, np.ones(n, dtype=bool), {}
