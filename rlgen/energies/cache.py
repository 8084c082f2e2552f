"""Relaxations that were computed once: one SQLite file for all runs and processes.

A result is found again by the exact description of its crystal (every bit of the cell and of the positions), the
potential, the settings and the versions of what computes. Equivalent descriptions are not looked for: finding out takes
time, their energies agree to rounding only, and a run would depend on which of them came first. Single points are not
kept: policies hardly ever write the same crystal twice, and a single point is cheap in a batch.

A run that goes on from a checkpoint must equal one that was never stopped, bit for bit on a CPU, whatever other runs
and workers have left here. So a cached result must be what would be computed now. In a batch that is not so: the last
digits depend on the company, hence on who else was found here. On a CPU, therefore, each crystal is relaxed alone and
on one thread. On a GPU, where nothing is exact, crystals that are not found are relaxed together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from pymatgen.core import Element, Lattice, Structure

from rlgen.counters import count
from rlgen.energies import Potential
from rlgen.energies.base import Cell
from rlgen.energies.relax import Relaxation, relax
from rlgen.energies.store import store

#: Raise when what is computed, or how it is written down, changes.
VERSION = 2


def relaxations(
    structures: Sequence[Structure],
    potential: Potential,
    *,
    fmax: float,
    steps: int,
    fixed_cell: bool = False,
    symmetry: bool = False,
    seconds: float | None = None,
    wanted: Sequence[float] | None = None,
) -> list[Relaxation]:
    """As `relax`, from the cache where it can be. What ran out of time is tried again only if it has more now."""
    settings: dict[str, Any] = {"fmax": fmax, "steps": steps, "fixed_cell": fixed_cell, "symmetry": symmetry}
    context = _context(potential, settings)
    energies: Sequence[float | None] = [None] * len(structures) if wanted is None else wanted
    keys = [_key(structure, context, energy) for structure, energy in zip(structures, energies, strict=True)]
    stored = {key: _relaxation(json.loads(text), seconds) for key, text in store().get(keys).items()}
    known = {key: result for key, result in stored.items() if result is not None}
    count("cache_hits", sum(key in known for key in keys))
    missing = {key: i for i, key in enumerate(keys) if key not in known}
    count("cache_misses", sum(key in missing for key in keys))
    groups = [list(missing)] if _device(potential).type != "cpu" else [[key] for key in missing]
    for group in filter(None, groups):
        with _one_thread():
            chosen = [missing[key] for key in group]
            results = relax(
                [structures[i] for i in chosen],
                potential,
                seconds=seconds,
                wanted=None if wanted is None else [wanted[i] for i in chosen],
                **settings,
            )
        found = dict(zip(group, results, strict=True))
        known |= found
        # Written at once: a worker that is lost later has not worked for nothing.
        store().put({key: json.dumps(_plain(result)) for key, result in found.items() if _lasting(result)})
    return [known[key] for key in keys]


def _context(potential: Potential, settings: dict[str, Any]) -> bytes:
    """Everything but the crystal that a result depends on."""
    # A user's calculator may change and keep its scale.
    fingerprint = getattr(potential, "fingerprint", "")
    what = {"version": VERSION, "scale": potential.scale, "fingerprint": fingerprint, **settings}
    return json.dumps(what | _surroundings(_device(potential).type), sort_keys=True).encode()


@lru_cache
def _surroundings(device: str) -> dict[str, str]:
    """The last digits of a result depend on these."""
    versions = {}
    for name in ("torch", "numpy", "pymatgen", "matgl", "chgnet", "ase"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = ""
    return versions | {"device": device, "instructions": torch.backends.cpu.get_cpu_capability()}


def _key(structure: Structure, context: bytes, wanted: float | None) -> bytes:
    digest = hashlib.sha256(context)
    if wanted is not None:
        digest.update(repr(float(wanted)).encode())
    if not structure.is_ordered:
        digest.update(repr(structure).encode())
        return digest.digest()
    cell = Cell.of(structure)
    for array in (cell.numbers, cell.positions, cell.lattice):
        digest.update(array.tobytes())
    return digest.digest()


def _device(potential: Potential) -> torch.device:
    return getattr(potential, "device", torch.device("cpu"))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _lasting(result: Relaxation) -> bool:
    """Whether the same would come out again: not where the network raised (memory may be short)."""
    return not (result.error or "").startswith(("network", "calculator"))


def _plain(result: Relaxation) -> dict[str, Any]:
    """For JSON, which keeps every bit of a float; the crystal becomes lists."""
    structure = result.structure
    crystal = None if structure is None else {
        "numbers": list(structure.atomic_numbers),
        "lattice": structure.lattice.matrix.tolist(),
        "frac_coords": structure.frac_coords.tolist(),
    }
    return {name: getattr(result, name) for name in Relaxation.__slots__} | {"structure": crystal}


def _relaxation(plain: dict[str, Any], seconds: float | None) -> Relaxation | None:
    """None where it had less time than it has now."""
    if (had := plain["stopped_after"]) is not None and (seconds is None or had < seconds):
        return None
    if (crystal := plain["structure"]) is not None:
        symbols = [Element.from_Z(z).symbol for z in crystal["numbers"]]
        plain["structure"] = Structure(Lattice(crystal["lattice"]), symbols, crystal["frac_coords"])
    return Relaxation(**plain)
