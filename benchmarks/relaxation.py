"""Our relaxation against ASE's, one crystal at a time: whether energies agree, and what each costs.

`python benchmarks/relaxation.py part=agreement energy=m3gnet source=mp20 n=200` relaxes each crystal with our FIRE and
with ASE's optimiser over a FrechetCellFilter, same potential, same fmax, and counts how often energies are within
2 meV/atom. For those that are not it says which side is lower, and what comes out when ours goes on from where ASE
ended: the same energy there means that the two fell into different minima. source: mp20, policy (sampled from the
shipped policy, as far as the stability reward's guards let it be relaxed), unguarded (whatever the policy writes).
optimiser: FIRE, BFGS.

`python benchmarks/relaxation.py part=speed energy=m3gnet n=128 cores=2` relaxes crystals of the shipped policy: by the
relaxer of the potential's own library (over ASE), by ASE with our potential behind its interface, and by ours, each
crystal alone (as for the cache) and in batches. cores: so many processes of one thread share the crystals.

`python benchmarks/relaxation.py part=given_up energy=m3gnet n=256 source=unguarded steps=30` relaxes as the stability
reward does, with and without giving crystals up, at several fmax: what it saves, and what is paid differently. `width`
is the reward's.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import ase.optimize
import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.filters import FrechetCellFilter
from ase.stress import full_3x3_to_voigt_6_stress
from pymatgen.core import Structure

from rlgen.energies import Potential, base, load_potential
from rlgen.energies.base import Cell
from rlgen.energies.fire import Walker
from rlgen.energies.relax import relax
from rlgen.hull import Hull

DEFAULTS = {"part": "speed", "energy": "m3gnet", "n": "128", "source": "policy", "fmax": "", "steps": "", "cores": "1",
            "optimiser": "FIRE", "seed": "0", "atoms": "20", "width": "0.2"}  # fmt: skip
AGREES = 2e-3


class Ours(Calculator):
    """One of our potentials behind ASE's interface."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, potential: Potential):
        super().__init__()
        self.potential = potential

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        point = self.potential.evaluate_cells([Cell(atoms.numbers, atoms.positions.copy(), atoms.cell.array)])[0]
        if point.error is not None or point.forces is None or point.stress is None:
            raise RuntimeError(point.error)
        voigt = full_3x3_to_voigt_6_stress(point.stress)  # the mean of what lies across the diagonal, as ours
        self.results = {"energy": point.energy * len(atoms), "forces": point.forces, "stress": voigt}


def with_ase(structure: Structure, potential: Potential, optimiser: str, fmax: float, steps: int) -> Any:
    """(energy eV/atom, steps, converged, atoms), or why ASE's run ended."""
    atoms = structure.to_ase_atoms()
    atoms.calc = Ours(potential)
    run = getattr(ase.optimize, optimiser)(FrechetCellFilter(atoms), logfile=None)
    try:
        converged = run.run(fmax=fmax, steps=steps)
    except (RuntimeError, np.linalg.LinAlgError, ValueError) as error:
        return str(error)
    return atoms.get_potential_energy() / len(atoms), run.nsteps, bool(converged), atoms


def crystals(source: str, n: int, seed: int, atoms: int) -> list[Structure]:
    if source == "mp20":
        from rlgen.data import load

        records = load("mp20").splits["test"]
        chosen = np.random.default_rng(seed).permutation(len(records))
        found: list[Any] = [records[i].structure for i in chosen[: 2 * n]]
    else:
        from policies.model import CrystalPolicy
        from policies.sampler import decode, sample
        from rewards.guards import refuse
        from rewards.stability import Stability

        policy, prompts = CrystalPolicy.load("shipped", None)
        conditions = prompts.sample(2 * n, np.random.default_rng(seed))
        found = decode(policy, sample(policy, conditions, torch.Generator().manual_seed(seed)))
        if source != "unguarded":
            limits = Stability()
            found = [c for c in found if isinstance(c, Structure) and not refuse(c, limits.closest, limits.vacuum)]
    return [crystal for crystal in found if isinstance(crystal, Structure) and len(crystal) <= atoms][:n]


def agreement(structures: Sequence[Structure], energy: str, optimiser: str, fmax: float, steps: int) -> None:
    """A line for each crystal that disagrees, and the shares."""
    potential = load_potential(energy)
    print(f"{len(structures)} crystals, {potential.scale}, fmax {fmax} eV/Å, at most {steps} steps, ASE's {optimiser}")
    same, apart, ours_steps, their_steps, refused = 0, 0, 0, 0, 0
    differences: list[float] = []
    for i, structure in enumerate(structures):
        if i and i % 25 == 0:
            print(f"  {i} done, {same} agree, {apart} in different minima, {refused} not relaxed", flush=True)
        ours = relax([structure], potential, fmax=fmax, steps=steps)[0]
        theirs = with_ase(structure, potential, optimiser, fmax, steps)
        if ours.error is not None or isinstance(theirs, str):
            refused += 1
            ase_end = theirs if isinstance(theirs, str) else f"{theirs[0]:.4f}"
            print(f"  {i} {structure.formula}: ours {ours.error or f'{ours.energy:.4f}'}, ASE {ase_end}", flush=True)
            continue
        ours_steps, their_steps = ours_steps + ours.steps, their_steps + theirs[1]
        differences.append(ours.energy - theirs[0])
        if abs(differences[-1]) < AGREES:
            same += 1
            continue
        from_theirs = relax([Structure.from_ase_atoms(theirs[3])], potential, fmax=fmax, steps=steps)[0].energy
        apart += abs(from_theirs - theirs[0]) < AGREES
        print(f"  {i} {structure.formula}: ours − ASE {1e3 * differences[-1]:+.1f} meV/atom, ours from ASE's end "
              f"{1e3 * (from_theirs - theirs[0]):+.1f}; converged: {ours.converged}, {theirs[2]}; first − last "
              f"{1e3 * (ours.initial_energy - ours.energy):.0f}", flush=True)  # fmt: skip
    n, d = len(differences), np.array(differences)
    print(f"within 2 meV/atom: {same} of {n + refused} ({same / (n + refused):.1%}); {apart} more ended in different "
          f"minima (ours lower in {np.sum(d < -AGREES)}, ASE in {np.sum(d > AGREES)}); not relaxed by one or both: "
          f"{refused}; median |ΔE| {1e3 * np.median(np.abs(d)):.2f} meV/atom; steps: ours {ours_steps / n:.0f}, "
          f"ASE {their_steps / n:.0f}")  # fmt: skip


@cache
def relaxer(energy: str) -> Any:
    """(structure, fmax, steps) -> steps taken, of the potential's own library, with the network as we evaluate it."""
    potential: Any = load_potential(energy)
    if energy == "chgnet":
        from chgnet.model.dynamics import StructOptimizer

        optimiser = StructOptimizer(model=potential._model, optimizer_class="FIRE", use_device="cpu")
        return lambda s, fmax, steps: len(optimiser.relax(s, fmax=fmax, steps=steps, verbose=False)["trajectory"])
    import matgl
    from matgl.ext.ase import Relaxer

    from rlgen.energies.weights import M3GNET, TENSORNET, folder_of

    theirs = matgl.load_model(str(folder_of(M3GNET if energy == "m3gnet" else TENSORNET)))
    theirs.model = potential._model
    relaxer = Relaxer(theirs, optimizer="FIRE")
    return lambda s, fmax, steps: len(relaxer.relax(s, fmax=fmax, steps=steps)["trajectory"].energies)


def measure(side: str, structures: list[Structure], energy: str, fmax: float, steps: int) -> tuple[float, float, int]:
    """(wall-clock seconds, CPU seconds, evaluations) of one process with one thread, the potential being loaded."""
    torch.set_num_threads(1)
    potential = load_potential(energy)
    if side == "library":
        relaxer(energy)
    started, cpu = time.perf_counter(), time.process_time()
    if side == "library":
        evaluations = sum(relaxer(energy)(structure, fmax, steps) for structure in structures)
    elif side == "ase":
        runs = [with_ase(structure, potential, "FIRE", fmax, steps) for structure in structures]
        evaluations = sum(run[1] + 1 for run in runs if not isinstance(run, str))
    else:
        results = relax(structures, potential, fmax=fmax, steps=steps, atoms_in_flight=1 if side == "alone" else 128)
        evaluations = sum(result.steps + 1 for result in results)
    return time.perf_counter() - started, time.process_time() - cpu, evaluations


def speed(structures: list[Structure], energy: str, fmax: float, steps: int, cores: int) -> None:
    """A row for each side; sides take turns, so that a busy machine slows all of them alike."""
    atoms = np.mean([len(structure) for structure in structures])
    print(f"{len(structures)} crystals of {atoms:.1f} atoms, {energy}, fmax {fmax} eV/Å, {cores} process(es)")
    sides = {"library": "its library's relaxer", "ase": "ASE, our potential", "alone": "ours, alone",
             "batched": "ours, batched"}  # fmt: skip
    totals = {side: np.zeros(3) for side in sides}
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        for start in range(0, len(structures), 16 * cores):
            piece = structures[start : start + 16 * cores]
            for side in sides:
                parts = [pool.submit(measure, side, piece[k::cores], energy, fmax, steps) for k in range(cores)]
                done = np.array([part.result() for part in parts])
                totals[side] += [done[:, 0].max(), done[:, 1].sum(), done[:, 2].sum()]
    base = totals["library"]
    print("side | crystals/s | crystals per CPU s | evaluations | ms of CPU per evaluation | CPU against the first")
    for side, (wall, cpu, evaluations) in totals.items():
        print(f"{sides[side]} | {len(structures) / wall:.2f} | {len(structures) / cpu:.2f} | {evaluations:.0f} | "
              f"{1e3 * cpu / evaluations:.1f} | {base[1] / cpu:.2f}×", flush=True)  # fmt: skip


def profile(structures: list[Structure], energy: str, fmax: float, steps: int) -> None:
    """A row for each share of the CPU time of one thread; neighbour lists include the guards on the geometry."""
    torch.set_num_threads(1)
    potential: Any = load_potential(energy)
    potential.evaluate(structures[:1])  # what is set up once
    spent: Counter[str] = Counter()

    def timed(share: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            start = time.process_time()
            result = function(*arguments, **keywords)
            spent[share] += time.process_time() - start
            return result

        return call

    watched = [("network, forward", potential, "_energies"), ("network, backward", torch.autograd, "grad"),
               ("neighbour lists", base, "neighbours"), ("FIRE", Walker, "look"), ("FIRE", Walker, "step")]  # fmt: skip
    with ExitStack() as stack:
        for share, owner, name in watched:
            stack.enter_context(patch.object(owner, name, timed(share, getattr(owner, name))))
        start = time.process_time()
        results = relax(structures, potential, fmax=fmax, steps=steps)
        total = time.process_time() - start
    spent["the rest (batches, crystals in and out)"] = total - sum(spent.values())
    evaluations = sum(result.steps + 1 for result in results)
    print(f"{len(structures)} crystals, {potential.scale}, fmax {fmax} eV/Å: {evaluations} evaluations, {total:.1f} s")
    for share, seconds in spent.most_common():
        print(f"{share} | {seconds / total:.1%}")


def given_up(structures: list[Structure], energy: str, width: float, steps: int) -> None:
    """A row for each fmax, with and without giving up; scores are held to those of the first row."""
    from rewards.stability import Stability

    torch.set_num_threads(1)
    potential = load_potential(energy)
    hull = Hull.load(potential.scale)
    structures = [structure for structure in structures if hull.elements.issuperset(structure.symbol_set)]
    floors = np.array([hull.hull_energy(structure.composition) for structure in structures])
    reward, first = Stability(width=width), np.empty(0)
    print(f"{len(structures)} crystals, {potential.scale}, at most {steps} steps, paid below {width} eV/atom")
    print("fmax | given up | evaluations | CPU s | paid | mean score | mean |difference| | largest")
    for fmax, giving_up in ((0.1, False), (0.1, True), (0.2, False), (0.2, True), (0.3, True)):
        start = time.process_time()
        wanted = floors + width if giving_up else None
        results = relax(structures, potential, fmax=fmax, steps=steps, wanted=wanted)
        cpu = time.process_time() - start
        above = np.array([result.energy for result in results]) - floors
        scores = np.nan_to_num(reward.transform(above))
        first = scores if len(first) == 0 else first
        apart = np.abs(scores - first)
        print(f"{fmax} | {sum(r.given_up for r in results)} | {sum(r.steps + 1 for r in results)} | {cpu:.0f} | "
              f"{np.sum(above < width)} | {scores.mean():.4f} | {apart.mean():.4f} | {apart.max():.2f}",
              flush=True)  # fmt: skip


def batch(structures: list[Structure], energy: str, seed: int, orders: int = 4) -> None:
    """Single points with company, in some orders, against each crystal's energy alone; one thread."""
    torch.set_num_threads(1)
    potential = load_potential(energy)
    alone = np.array([potential.evaluate([structure], forces=False)[0].energy for structure in structures])
    differences = np.empty((orders, len(structures)))
    for k in range(orders):
        order = np.random.default_rng([seed, k]).permutation(len(structures))
        points = potential.evaluate([structures[i] for i in order], forces=False)
        differences[k, order] = np.abs([point.energy for point in points] - alone[order])
    differences = differences[:, ~np.isnan(alone)]
    print(f"{differences.shape[1]} crystals in {orders} orders, {potential.scale}, against each alone:")
    print(f"{np.mean(differences > 0):.0%} of the energies differ, by at most {differences.max():.1e} eV/atom")


def main(arguments: Sequence[str]) -> None:
    given = DEFAULTS | dict(argument.split("=", 1) for argument in arguments)
    if unknown := given.keys() - DEFAULTS.keys():
        sys.exit(f"unknown: {', '.join(unknown)}; known keys: {', '.join(DEFAULTS)}")
    structures = crystals(given["source"], int(given["n"]), int(given["seed"]), int(given["atoms"]))
    part, energy = given["part"], given["energy"]
    agrees = part == "agreement"
    fmax, steps = float(given["fmax"] or (0.05 if agrees else 0.1)), int(given["steps"] or (300 if agrees else 100))
    if agrees:
        agreement(structures, energy, given["optimiser"], fmax, steps)
    elif part == "speed":
        speed(structures, energy, fmax, steps, int(given["cores"]))
    elif part == "profile":
        profile(structures, energy, fmax, steps)
    elif part == "given_up":
        given_up(structures, energy, float(given["width"]), steps)
    elif part == "batch":
        batch(structures, energy, int(given["seed"]))
    else:
        sys.exit(f"part={part}: known are agreement, batch, given_up, profile, speed")


if __name__ == "__main__":
    main(sys.argv[1:])
