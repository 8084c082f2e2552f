"""How exact and canonical a representation is, on real crystals: `python benchmarks/round_trip.py [count] [data]`.

Prints the share of crystals that come back (StructureMatcher), that keep their space group at 0.01 Å, and that are
written the same from a random equivalent description; and encoding and decoding speed.
"""

import sys
import time

import moyopy
import numpy as np
import spglib
from pymatgen.analysis.structure_matcher import StructureMatcher

from policies.representations import make
from policies.representations.canonical import random_equivalent
from rlgen.data import load


def by_spglib(structure) -> int:
    cell = structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers
    return spglib.get_symmetry_dataset(cell, symprec=0.01).number


def by_moyo(structure) -> int:
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
    kept = {f.__name__[3:]: np.mean([f(a) == f(b) for a, b in zip(chosen, read, strict=True)])
            for f in (by_spglib, by_moyo)}
    same = np.mean([representation.encode(random_equivalent(s, rng)) == ids
                    for s, ids in zip(chosen, written, strict=True)])
    print(f"{name} on {len(chosen)} crystals of {data}'s test split")
    print(f"  tokens, mean               {np.mean([len(ids) for ids in written]):.1f}")
    print(f"  match after a round trip   {matches:.2%}")
    print(f"  space group kept (0.01 Å)  {kept['spglib']:.2%} by spglib, {kept['moyo']:.2%} by moyo")
    print(f"  same from an equivalent    {same:.2%}")
    speeds = [len(chosen) / seconds for seconds in (middle - start, end - middle)]
    print(f"  encode (canonical), decode {speeds[0]:.0f}, {speeds[1]:.0f} per second")


if __name__ == "__main__":
    main(*([int(sys.argv[1])] if len(sys.argv) > 1 else []), *sys.argv[2:])
