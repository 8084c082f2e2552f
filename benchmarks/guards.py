"""What the guards of the stability reward refuse: real crystals by mistake, and crystals made to fool a potential.

    python benchmarks/guards.py energy=m3gnet audit=chgnet n=2000
    python benchmarks/guards.py energy=m3gnet mode=relax steps=50 n=2000 families=
    python benchmarks/guards.py energy=m3gnet source=policy n=200 families=
    python benchmarks/guards.py energy=chgnet audit=m3gnet real= n=0

Real crystals are the first n of a random order of MP-20's test split, none of which is in a shipped hull;
source=policy takes samples of the shipped policy in their place, such as fail no guard on the geometry. A made
crystal is paid if it scores above 0.01. `below` counts those of the elements' common structures that come out more than
0.1 eV/atom below the element's known crystals: holes in the potential.
"""

from __future__ import annotations

import sys
import time
from collections import Counter

import numpy as np
from pymatgen.core import Lattice, Structure
from relaxation import crystals as sampled

from rewards.guards import GUARDS
from rewards.stability import Stability
from rlgen import counters
from rlgen.data import load
from rlgen.energies import load_potential
from rlgen.energies.elements import candidates

#: Larger cells of one element are left out: they cost most of the time and are no likelier to be holes.
LARGEST_ELEMENT_CELL = 8


def real_crystals(n: int) -> list[Structure]:
    records = load("mp20").splits["test"]
    return [records[i].structure for i in np.random.default_rng(0).permutation(len(records))[:n]]


def element_structures(energy: str) -> list[Structure]:
    """Every element in common structures, at six volumes each."""
    return [
        structure
        for symbol in sorted(load_potential(energy).elements)
        for _, structures in candidates(symbol)
        for structure in structures
        if len(structure) <= LARGEST_ELEMENT_CELL
    ]


def spoilt(crystals: list[Structure]) -> dict[str, list[Structure]]:
    """Real crystals made worthless in the ways that a potential may not notice."""
    found: dict[str, list[Structure]] = {
        "squeezed to half the volume": [], "swollen to three times the volume": [], "an atom beside another": [],
        "slabs, 8 Å of vacuum": [], "one atom 8 Å from the rest": [], "elements drawn at random": [],
    }  # fmt: skip
    rng = np.random.default_rng(1)
    elements = sorted({site.specie for crystal in crystals for site in crystal})
    for crystal in crystals:
        volume = crystal.volume
        found["squeezed to half the volume"].append(crystal.copy().scale_lattice(0.5 * volume))
        found["swollen to three times the volume"].append(crystal.copy().scale_lattice(3 * volume))
        if len(crystal) > 1:
            close = crystal.copy()
            close.translate_sites([0], crystal[1].coords - crystal[0].coords + np.array([0, 0, 0.6]), frac_coords=False)
            found["an atom beside another"].append(close)
        matrix = crystal.lattice.matrix
        normal = np.cross(matrix[0], matrix[1])
        normal *= 8 / np.linalg.norm(normal) * np.sign(normal @ matrix[2])
        apart = Lattice([matrix[0], matrix[1], matrix[2] + normal])
        inside = (crystal.frac_coords % 1) @ matrix
        found["slabs, 8 Å of vacuum"].append(Structure(apart, crystal.species, inside, coords_are_cartesian=True))
        gas = Structure(Lattice([matrix[0], matrix[1], matrix[2] + 2 * normal]), crystal.species, inside,
                        coords_are_cartesian=True)
        gas.append(crystal[0].specie, inside[inside[:, 2].argmax()] + normal, coords_are_cartesian=True)
        found["one atom 8 Å from the rest"].append(gas)
        other = crystal.copy()
        other.replace_species({old: elements[rng.integers(len(elements))] for old in crystal.composition})
        found["elements drawn at random"].append(other)
    return found


def measured(reward: Stability, crystals: list[Structure], piece: int = 50) -> tuple[np.ndarray, list[str]]:
    raw, reasons = [], []
    for start in range(0, len(crystals), piece):
        part = crystals[start : start + piece]
        values, why = reward.measure_with_reasons(part, [{}] * len(part))
        raw.append(values)
        reasons += why
    return np.concatenate(raw), reasons


def main(energy: str = "m3gnet", audit: str = "", mode: str = "single_point", max_force: float | None = None,
         steps: int = 50, n: int = 2000, made: int = 200, real: str = "yes", source: str = "mp20",
         families: str = "yes") -> None:  # fmt: skip
    common = {"energy": energy, "mode": mode, "steps": steps, "cache": False}
    unguarded = Stability(**common, floor=1e9, closest=1e-9, vacuum=15, max_force=np.inf)
    guarded = {"guards": Stability(**common, max_force=max_force)}
    if audit:
        guarded["guards and audit"] = Stability(**common, max_force=max_force, audit=audit)
    if real:
        crystals = real_crystals(n) if source == "mp20" else sampled(source, n, seed=0, atoms=20)
        counters.drain()
        started = time.perf_counter()
        raw, reasons = measured(guarded.get("guards and audit", guarded["guards"]), crystals)
        counted = counters.drain()
        by = f", audited by {audit}" if audit else ""
        paid = np.mean(raw < guarded["guards"].width)
        print(f"\n{energy}{by}, {mode}: {len(crystals):,} of {source} in {time.perf_counter() - started:.0f} s")
        print(f"{np.isfinite(raw).mean():.1%} measured, {paid:.1%} below {guarded['guards'].width} eV/atom\n")
        print("| guard | refused | share |\n|---|---:|---:|")
        for guard in GUARDS:
            refused = counted[f"guard/{guard}"]
            print(f"| {guard} | {refused} | {refused / len(crystals):.2%} |")
        others = Counter(why.split(":")[0] for why in reasons if why and why.split(":")[0] not in GUARDS)
        print(f"other failures: {dict(others) or 'none'}")
    if families:
        print(f"\n| made crystals | n | paid without guards | {' | '.join(f'with {name}' for name in guarded)} |")
        print("|---|---:|---:|" + "---:|" * len(guarded))
        for name, crystals in spoilt(real_crystals(made)).items():
            paid = [paid_of(reward, crystals) for reward in (unguarded, *guarded.values())]
            print(f"| {name} | {len(crystals)} | {' | '.join(map(str, paid))} |")
        crystals = element_structures(energy)
        raw, _ = measured(unguarded, crystals)
        holes = [crystal for crystal, value in zip(crystals, raw, strict=True) if value < -0.1]
        paid = [paid_of(reward, holes) for reward in (unguarded, *guarded.values())]
        print(f"| elements, below (of {len(crystals)}) | {len(holes)} | {' | '.join(map(str, paid))} |")
        below = [(value, crystal) for value, crystal in zip(raw, crystals, strict=True) if value < -0.1]
        for value, crystal in sorted(below, key=lambda item: item[0])[:8]:
            group = crystal.get_space_group_info()[0]
            print(f"  {crystal.composition.reduced_formula} {group}, {crystal.volume / len(crystal):.1f} Å³ per atom: "
                  f"{value:.2f} eV/atom")


def paid_of(reward: Stability, crystals: list[Structure]) -> int:
    """How many of them score."""
    return int((np.nan_to_num(reward.transform(measured(reward, crystals)[0])) > 0.01).sum()) if crystals else 0


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    numbers = {key: int(given.pop(key)) for key in ("steps", "n", "made") if key in given}
    force = {"max_force": float(given.pop("max_force"))} if "max_force" in given else {}
    main(**given, **numbers, **force)
