"""How exact, canonical and fast each representation is, on real crystals.

    python benchmarks/round_trip.py count=1000 data=mp20 names=atoms,orbits,text,invariant descriptions=10

Prints, as a table: the mean number of tokens; how many crystals cannot be written or are refused by the grammar; the
share that comes back (StructureMatcher), that keeps its space group (spglib, 0.01 Å), of `descriptions` random
equivalent descriptions of each crystal that are written the same, and of crystals written the same after being read;
and crystals per second of processor time of one core: written (canonically, all included), written where the canonical
form is known already, and read to arrays. Ends with exit code 1, naming each, if it misses one of `LEAST`.
"""

from __future__ import annotations

import sys
import time
from unittest import mock

import numpy as np
import spglib
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from policies.representations import REPRESENTATIONS, make
from policies.representations.base import Representation
from policies.representations.wyckoff import N_GROUPS, positions
from rlgen.data import load
from rlgen.encoded import allowed
from rlgen.types import CrystalError

#: Each column's format and the least that it must have; `text` promises no more than its three decimals can hold.
COLUMNS = {"tokens": ".1f", "refused": "d", "match": ".1%", "space group kept": ".1%",
           "same from an equivalent": ".1%", "same again": ".1%", "written/s": ",.0f", "canonical ones/s": ",.0f",
           "read/s": ",.0f"}
LEAST = {"match": 0.995, "same from an equivalent": 0.99, "written/s": 40, "canonical ones/s": 200, "read/s": 1000}
SYMMETRIC = {"space group kept": 0.99, "same again": 0.99}
OWN_LEAST = {"atoms": SYMMETRIC | {"space group kept": 0.94}, "orbits": SYMMETRIC, "invariant": SYMMETRIC}


def group(structure: Structure) -> int:
    cell = structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers
    return spglib.get_symmetry_dataset(cell, symprec=0.01).number


def attempt(representation: Representation, structure: Structure) -> list[int] | None:
    """What is written of a crystal, None where nothing can be."""
    try:
        return representation.encode(structure)
    except CrystalError:
        return None


def seconds_if_canonical(representation: Representation, chosen: list[Structure]) -> float:
    """Of writing all of them, after their canonical forms were found."""
    module = sys.modules[type(representation).__module__]
    form = next(name for name in ("canonical_cell", "symmetrise") if hasattr(module, name))
    with mock.patch.object(module, form, side_effect=[getattr(module, form)(s) for s in chosen]):
        start = time.process_time()
        for s in chosen:
            representation.encode(s)
        return time.process_time() - start


def measure(name: str, chosen: list[Structure], descriptions: int) -> dict[str, float]:
    """Each column; a crystal that cannot be written counts against every share."""
    representation, matcher, rng = make(name), StructureMatcher(), np.random.default_rng(0)
    for number in range(1, N_GROUPS + 1):  # tables are built once
        positions(number)
    representation.decode_arrays(representation.encode(chosen[0]))
    start = time.process_time()
    attempts = [attempt(representation, s) for s in chosen]
    middle = time.process_time()
    done = [(s, ids) for s, ids in zip(chosen, attempts, strict=True) if ids is not None]
    again = time.process_time()
    for _, ids in done:
        representation.decode_arrays(ids)
    end = time.process_time()
    read = [representation.decode(ids) for _, ids in done]
    legal = allowed(representation, [np.array(ids) for _, ids in done])
    same = sum(attempt(representation, representation.random_equivalent(s, rng)) == ids
               for s, ids in done for _ in range(descriptions))
    n = len(chosen)
    return {
        "tokens": float(np.mean([len(ids) for _, ids in done])),
        "refused": n - sum(legal),
        "match": sum(matcher.fit(s, back) for (s, _), back in zip(done, read, strict=True)) / n,
        "space group kept": sum(group(s) == group(back) for (s, _), back in zip(done, read, strict=True)) / n,
        "same from an equivalent": same / (n * descriptions),
        "same again": sum(attempt(representation, back) == ids
                          for (_, ids), back in zip(done, read, strict=True)) / n,
        "written/s": n / (middle - start),
        "canonical ones/s": len(done) / seconds_if_canonical(representation, [s for s, _ in done]),
        "read/s": len(done) / (end - again),
    }


def missed(name: str, found: dict[str, float]) -> list[str]:
    """What is below its threshold, in words."""
    short = [f"{name}: {column} {found[column]:{COLUMNS[column]}}, at least {least:{COLUMNS[column]}}"
             for column, least in (LEAST | OWN_LEAST.get(name, {})).items() if found[column] < least]
    return short + [f"{name}: {found['refused']} refused"] * (found["refused"] > 0)


def main(count: int = 1000, data: str = "mp20", names: str = ",".join(REPRESENTATIONS), descriptions: int = 10) -> None:
    records = load(data).splits["test"]
    chosen = [records[i].structure for i in np.random.default_rng(0).permutation(len(records))[: int(count)]]
    print(f"| {len(chosen)} crystals of {data}'s test split | " + " | ".join(COLUMNS) + " |\n|---"
          + "|---:" * len(COLUMNS) + "|")
    short: list[str] = []
    for name in names.split(","):
        found = measure(name, chosen, int(descriptions))
        short += missed(name, found)
        print(f"| {name} | " + " | ".join(f"{found[c]:{form}}" for c, form in COLUMNS.items()) + " |", flush=True)
    if short:
        raise SystemExit("missed: " + "; ".join(short))


if __name__ == "__main__":
    main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))
