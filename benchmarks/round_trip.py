"""How exact and canonical a representation is, on real crystals: `python benchmarks/round_trip.py [count] [data]`.

Prints the share of crystals that come back (StructureMatcher), that keep their space group at 0.01 Å, and that are
written the same from a random equivalent description; and encoding and decoding speed.
"""

import sys
import time

import moyopy
import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher

from policies.representations import make
from policies.representations.canonical import random_equivalent
from rlgen.data import load


def space_group(structure) -> int:
    cell = moyopy.Cell(structure.lattice.matrix.tolist(), structure.frac_coords.tolist(), structure.atomic_numbers)
    return moyopy.MoyoDataset(cell, symprec=0.01).number


def main(count: int = 1000, data: str = "mp20", name: str = "atoms") -> None:
    records = load(data).splits["test"]
    rng = np.random.default_rng(0)
    chosen = [records[i].structure for i in rng.permutation(len(records))[:count]]
    representation = make(name)
    start = time.perf_counter()
    written = [representation.encode(s) for s in chosen]
    middle = time.perf_counter()
    read = [representation.decode(ids) for ids in written]
    end = time.perf_counter()
    matcher = StructureMatcher()
    matches = np.mean([matcher.fit(a, b) for a, b in zip(chosen, read, strict=True)])
    kept = np.mean([space_group(a) == space_group(b) for a, b in zip(chosen, read, strict=True)])
    same = np.mean([representation.encode(random_equivalent(s, rng)) == ids
                    for s, ids in zip(chosen, written, strict=True)])
    print(f"{name} on {len(chosen)} crystals of {data}'s test split")
    print(f"  tokens, mean               {np.mean([len(ids) for ids in written]):.1f}")
    print(f"  match after a round trip   {matches:.2%}")
    print(f"  space group kept (0.01 Å)  {kept:.2%}")
    print(f"  same from an equivalent    {same:.2%}")
    print(f"  encode (canonical), decode {len(chosen) / (middle - start):.0f}, {len(chosen) / (end - middle):.0f} per second")


if __name__ == "__main__":
    main(*([int(sys.argv[1])] if len(sys.argv) > 1 else []), *sys.argv[2:])
