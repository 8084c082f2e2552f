"""Energies above the hull, ours against pymatgen's: `python benchmarks/hull.py scale=m3gnet-mp-2021.2.8`.

Agreement on the hull's energy over `systems` chemical systems drawn at random, at every crystal in them and at two
random compositions of each; whether members of the hull are at 0; then the time for `crystals` compositions of the
hull's own data, ours beside `PhaseDiagram` on `compared` of them, one core, nothing known beforehand.
"""

from __future__ import annotations

import itertools
import sys
import time

import numpy as np
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from rlgen.hull import Hull


def entries_within(hull: Hull, symbols: tuple[str, ...]) -> list[PDEntry]:
    """Every reference crystal of a chemical system and those within it."""
    return [
        PDEntry(Composition(fractions), energy)
        for size in range(1, len(symbols) + 1)
        for system in itertools.combinations(symbols, size)
        for fractions, energy in hull._by_system.get(frozenset(system), ())
    ]


def agreement(hull: Hull, count: int) -> None:
    rng = np.random.default_rng(0)
    systems = sorted(tuple(sorted(s)) for s in hull._by_system if len(s) > 1)
    differences, members, lowest = [], [], np.inf
    for k in rng.permutation(len(systems))[:count]:
        symbols = systems[k]
        entries = entries_within(hull, symbols)
        diagram = PhaseDiagram(entries)
        for entry in entries:
            ours = hull.e_above_hull(entry.composition, entry.energy_per_atom, scale=hull.scale)
            theirs = diagram.get_e_above_hull(entry)
            differences.append(abs(ours - theirs))
            lowest = min(lowest, ours)
            if entry in diagram.stable_entries:
                members.append(abs(ours))
        for amounts in rng.integers(1, 9, (2, len(symbols))).tolist():
            composition = Composition(dict(zip(symbols, amounts, strict=True)))
            differences.append(abs(hull.hull_energy(composition) - diagram.get_hull_energy_per_atom(composition)))
    print(f"{count} chemical systems, {len(differences):,} compositions: largest difference {max(differences):.1e} "
          f"eV/atom; {len(members):,} members of the hull at most {max(members):.1e} from 0, "
          f"no reference below {lowest:.1e}")


def speed(hull: Hull, count: int, compared: int) -> None:
    rng = np.random.default_rng(1)
    formulas = list(hull.sources)
    compositions = [Composition(formulas[k]) for k in rng.integers(len(formulas), size=count)]
    hull.system.cache_clear()
    started = time.perf_counter()
    for composition in compositions:
        hull.hull_energy(composition)
    ours = time.perf_counter() - started
    started = time.perf_counter()
    for composition in compositions[:compared]:
        symbols = tuple(sorted(element.symbol for element in composition))
        if len(symbols) > 1:
            PhaseDiagram(entries_within(hull, symbols)).get_hull_energy_per_atom(composition)
    theirs = (time.perf_counter() - started) * count / compared
    systems = len({frozenset(c.elements) for c in compositions})
    print(f"{count:,} crystals in {systems:,} chemical systems: {ours:.1f} s, pymatgen's PhaseDiagram {theirs:.0f} s "
          f"(from {compared}): {theirs / ours:.0f} times faster")


def main(scale: str = "m3gnet-mp-2021.2.8", systems: str = "500", crystals: str = "10000",
         compared: str = "200") -> None:  # fmt: skip
    hull = Hull.load(scale)
    agreement(hull, int(systems))
    speed(hull, int(crystals), int(compared))


if __name__ == "__main__":
    main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))
