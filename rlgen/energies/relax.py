"""Relaxation of many crystals at once: one batched evaluation per step of FIRE, and a queue behind it.

Crystals that are done, or broken, leave the batch, and the next in the queue enter it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from pymatgen.core import Element, Lattice, Structure

from rlgen.energies import Potential
from rlgen.energies.base import Cell, CellError
from rlgen.energies.fire import Walker
from rlgen.energies.symmetry import symmetrised

NAN = float("nan")
#: A crystal is given up when it is further above what is wanted than MARGIN (eV/atom) and LEFT times what its last
#: RECENT steps won (`python benchmarks/relaxation.py part=given_up`).
RECENT, LEFT, MARGIN = 4, 2.0, 0.2


@dataclass(frozen=True, slots=True)
class Relaxation:
    """How one crystal relaxed: energies in eV/atom, max_force in eV/Å (over atoms and cell), on the scale `scale`.

    structure is None, and the energies NaN, where `error` says why the crystal could not be relaxed. stopped_after:
    the time limit (s) that stopped it, before it converged and before its steps were used up. given_up: its energy
    would not have come down to what was wanted of it, and is that of where it was left.
    """

    energy: float
    initial_energy: float
    structure: Structure | None
    steps: int
    converged: bool
    max_force: float
    scale: str
    error: str | None = None
    stopped_after: float | None = None
    given_up: bool = False

    @property
    def timed_out(self) -> bool:
        return self.stopped_after is not None


def relax(
    structures: Sequence[Structure],
    potential: Potential,
    *,
    fmax: float = 0.1,
    steps: int = 100,
    fixed_cell: bool = False,
    symmetry: bool = False,
    seconds: float | None = None,
    wanted: Sequence[float] | None = None,
    atoms_in_flight: int | None = None,
) -> list[Relaxation]:
    """Relaxes each crystal until its largest force is below `fmax` eV/Å, or its steps or its time are used up.

    A crystal that did not get there comes back as it is then, with `converged` False. steps: 0 is a single point.
    fixed_cell: only atoms move. symmetry: keep the space group. seconds: wall-clock time of each crystal.
    wanted: for each crystal the energy (eV/atom) up to which it is of interest; one that will hardly get there is given
    up. atoms_in_flight: so many atoms are in a batch, at most (a larger crystal is alone), None: as many as the
    potential evaluates at once, and 128 at least; with 1 each crystal is alone, and what comes out depends on nothing
    else that is relaxed.
    """
    if atoms_in_flight is None:
        atoms_in_flight = max(128, getattr(potential, "atoms_per_batch", 0))
    results: list[Relaxation | None] = [None] * len(structures)
    queue = deque(range(len(structures)))
    flying: list[_Flight] = []
    while queue or flying:
        atoms = sum(len(flight.walker.numbers) for flight in flying)
        while queue and (not flying or atoms + len(structures[queue[0]]) <= atoms_in_flight):
            index = queue.popleft()
            try:
                flying.append(_Flight(index, _walker(structures[index], fixed_cell, symmetry), time.monotonic()))
                atoms += len(structures[index])
            except CellError as error:
                results[index] = Relaxation(NAN, NAN, None, 0, False, NAN, potential.scale, str(error))
        points = potential.evaluate_cells([flight.walker.cell() for flight in flying], forces=True)
        landed = []
        for flight, point in zip(flying, points, strict=True):
            forces = flight.walker.look(point, fmax)
            late = seconds is not None and time.monotonic() - flight.started > seconds
            lost = wanted is not None and _hopeless(flight.walker.energies, wanted[flight.index])
            if forces is None or flight.walker.steps >= steps or late or lost:
                limit = seconds if flight.walker.steps < steps and not lost else None
                results[flight.index] = _result(flight.walker, potential.scale, limit, lost)
                landed.append(flight)
            else:
                flight.walker.step(forces)
        flying = [flight for flight in flying if flight not in landed]
    return [result for result in results if result is not None]


@dataclass(eq=False, slots=True)
class _Flight:
    index: int
    walker: Walker
    started: float


def _walker(structure: Structure, fixed_cell: bool, symmetry: bool) -> Walker:
    if not structure.is_ordered:
        raise CellError("disorder: a site is shared or partly empty")
    cell = Cell.of(structure)
    if not symmetry:
        return Walker(cell, fixed_cell=fixed_cell)
    cell, operations = symmetrised(cell)
    return Walker(cell, fixed_cell=fixed_cell, symmetry=operations)


def _hopeless(energies: Sequence[float], wanted: float) -> bool:
    """Whether a crystal whose energies (eV/atom) so far are these stays above `wanted`, to all appearance."""
    if len(energies) <= RECENT:
        return False
    return energies[-1] > wanted + MARGIN + LEFT * max(energies[-1 - RECENT] - energies[-1], 0.0)


def _result(walker: Walker, scale: str, limit: float | None, lost: bool) -> Relaxation:
    first = walker.energies[0] if walker.energies else NAN
    if walker.error is not None:
        return Relaxation(NAN, first, None, walker.steps, False, NAN, scale, walker.error)
    symbols = [Element.from_Z(int(z)).symbol for z in walker.numbers]
    return Relaxation(
        walker.energies[-1],
        first,
        Structure(Lattice(walker.lattice), symbols, walker.positions, coords_are_cartesian=True),
        walker.steps,
        walker.converged,
        walker.max_force,
        scale,
        stopped_after=None if walker.converged else limit,
        given_up=lost and not walker.converged,
    )
