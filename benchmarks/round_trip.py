"""How exact and canonical each representation is, on real crystals.

    python benchmarks/round_trip.py count=1000 data=mp20 names=atoms,orbits,text,invariant

Prints, as a table: the mean number of tokens; the share of crystals that come back (StructureMatcher), that keep
their space group (spglib, 0.01 Å), that are written the same from a random equivalent description, and again after
being read; and crystals per second of one core: written (canonically, all included), written where the canonical form
is known already, and read to arrays.
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
from policies.representations.canonical import random_equivalent
from rlgen.data import load

COLUMNS = ("tokens", "match", "space group kept", "same from an equivalent", "same again", "written/s",
           "canonical ones/s", "read/s")


def group(structure: Structure) -> int:
    cell = structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers
    return spglib.get_symmetry_dataset(cell, symprec=0.01).number


def seconds_if_canonical(representation: Representation, chosen: list[Structure]) -> float:
    """Of writing all of them, after their canonical forms were found."""
    module = sys.modules[type(representation).__module__]
    form = next(name for name in ("canonical_cell", "symmetrise") if hasattr(module, name))
    with mock.patch.object(module, form, side_effect=[getattr(module, form)(s) for s in chosen]):
        start = time.perf_counter()
        for s in chosen:
            representation.encode(s)
        return time.perf_counter() - start


def row(name: str, chosen: list[Structure]) -> list[str]:
    representation, matcher, rng = make(name), StructureMatcher(), np.random.default_rng(0)
    representation.encode(chosen[0])  # tables are built once
    start = time.perf_counter()
    written = [representation.encode(s) for s in chosen]
    middle = time.perf_counter()
    for ids in written:
        representation.decode_arrays(ids)
    end = time.perf_counter()
    read = [representation.decode(ids) for ids in written]
    shares = [
        np.mean([matcher.fit(a, b) for a, b in zip(chosen, read, strict=True)]),
        np.mean([group(a) == group(b) for a, b in zip(chosen, read, strict=True)]),
        np.mean([representation.encode(random_equivalent(s, rng)) == ids
                 for s, ids in zip(chosen, written, strict=True)]),
        np.mean([representation.encode(s) == ids for s, ids in zip(read, written, strict=True)]),
    ]
    speeds = [len(chosen) / seconds for seconds in
              (middle - start, seconds_if_canonical(representation, chosen), end - middle)]
    return [f"{np.mean([len(ids) for ids in written]):.1f}", *(f"{share:.1%}" for share in shares),
            *(f"{speed:,.0f}" for speed in speeds)]


def main(count: int = 1000, data: str = "mp20", names: str = ",".join(REPRESENTATIONS)) -> None:
    records = load(data).splits["test"]
    chosen = [records[i].structure for i in np.random.default_rng(0).permutation(len(records))[: int(count)]]
    print(f"| {len(chosen)} crystals of {data}'s test split | " + " | ".join(COLUMNS) + " |\n|---"
          + "|---:" * len(COLUMNS) + "|")
    for name in names.split(","):
        print(f"| {name} | " + " | ".join(row(name, chosen)) + " |", flush=True)


if __name__ == "__main__":
    main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))
