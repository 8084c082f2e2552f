"""Any ASE calculator as a potential, by dotted name: `energy=my_module:make_calculator`, crystal by crystal.

Nobody knows reference energies for it here: when it is loaded, it is checked on sanity alone (`rlgen.energies.sanity`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Self

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.data import chemical_symbols

from rlgen.energies import PointResult
from rlgen.energies.base import Cell, CellPotential, Edges
from rlgen.energies.sanity import NO_DERIVATIVES, check
from rlgen.types import UserError

#: Names that may become part of a file's name.
_SCALE = re.compile(r"[\w.:+-]+")


class AsePotential(CellPotential):
    """A calculator behind the interface of all potentials: the same guards, one crystal after the other.

    scale: what the factory or the calculator calls itself in `scale`, else the dotted name. elements: those of a
    calculator that lists them in `elements`, else all; it may still refuse one, which is then that crystal's error.
    """

    #: What tells it from what had its scale before it was changed: the energy of the crystal it was checked on.
    fingerprint: str = ""
    #: No calculator tells its reach; further apart than this (Å) atoms do not bind.
    cutoff = 6.0

    def __init__(self, name: str, calculator: Any, scale: str | None = None):
        self.name = name
        self.scale = scale or name
        self.elements = frozenset(getattr(calculator, "elements", None) or chemical_symbols[1:])
        self._calculator = calculator

    @classmethod
    def load(cls, name: str) -> Self:
        """The calculator `module:attribute`, or what it returns when called without arguments, checked."""
        module, _, attribute = name.partition(":")
        try:
            made = found = getattr(import_module(module), attribute)
        except Exception as error:  # whatever a user's code raises is the user's to read
            raise UserError(f"energy={name} cannot be imported: {type(error).__name__}: {error}") from error
        if isinstance(found, type) or not _is_calculator(found):
            if not callable(found):
                raise UserError(f"energy={name} is {type(found).__name__}, not an ASE calculator or what makes one")
            try:
                made = found()
            except Exception as error:
                raise UserError(f"energy={name}() raised {type(error).__name__}: {error}") from error
        if not _is_calculator(made):
            raise UserError(
                f"energy={name} gives {type(made).__name__}, not an ASE calculator: no get_potential_energy"
            )
        scale = next((s for s in (getattr(o, "scale", None) for o in (found, made)) if isinstance(s, str)), name)
        if not _SCALE.fullmatch(scale):
            raise UserError(f"energy={name}: its scale {scale!r} may have letters, digits and . : + - _ only")
        potential = cls(name, made, scale)
        potential.fingerprint = f"{check(potential):.5f}"
        return potential

    def _points(self, ready: Sequence[tuple[Cell, Edges]], forces: bool) -> list[PointResult]:
        return [self._point(cell, forces) for cell, _ in ready]

    def _point(self, cell: Cell, forces: bool) -> PointResult:
        atoms = Atoms(cell.numbers, cell.positions, cell=cell.lattice, pbc=True, calculator=self._calculator)
        try:
            energy = float(atoms.get_potential_energy()) / len(atoms)
            derivatives = (atoms.get_forces(), atoms.get_stress(voigt=False)) if forces else (None, None)
        except PropertyNotImplementedError as error:
            return PointResult.failed(f"{NO_DERIVATIVES} ({error})")
        except Exception as error:  # a calculator may raise anything; only this crystal is lost, and its error kept
            return PointResult.failed(f"calculator: {type(error).__name__}: {str(error)[:200]}")
        if not all(np.isfinite(value).all() for value in (energy, *derivatives) if value is not None):
            return PointResult.failed("numeric: the energy, a force or the stress is not finite")
        return PointResult(energy, *derivatives)


def _is_calculator(thing: Any) -> bool:
    return hasattr(thing, "get_potential_energy") and not isinstance(thing, Atoms)
