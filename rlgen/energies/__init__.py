"""Interatomic potentials behind one small interface; the table below is the only list of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rlgen.types import UserError

if TYPE_CHECKING:
    import numpy as np
    from pymatgen.core import Structure

    from rlgen.energies.base import Cell

log = logging.getLogger(__name__)

#: name -> "module:class"; the class's `load()` gives a loaded and checked potential.
POTENTIALS = {
    "m3gnet": "rlgen.energies.m3gnet:M3GNetPotential",
    "tensornet": "rlgen.energies.tensornet:TensorNetPotential",
    "chgnet": "rlgen.energies.chgnet:CHGNetPotential",
    "megnet": "rlgen.energies.megnet:MEGNetPotential",
}
#: Those that give a relaxed crystal's energy whatever its geometry.
_WITHOUT_FORCES = frozenset({"megnet"})
#: The weights in a folder of `rlgen.foretell`, which names a potential too: MEGNet, taught further.
TAUGHT = "foretold.safetensors"


@dataclass(frozen=True, slots=True)
class PointResult:
    """One crystal's energy (eV/atom), forces (N, 3) eV/Å and stress (3, 3) eV/Å³ (positive = wants to shrink).

    error: why there is none, its first word being the kind ("element", "isolated", "overlap", "dense", "flat",
    "numeric", "network", "calculator", "disorder", "empty"); the energy is then NaN.
    """

    energy: float
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    error: str | None = None

    @classmethod
    def failed(cls, error: str) -> PointResult:
        return cls(float("nan"), error=error)


class Potential(Protocol):
    """A loaded potential. Energies of two potentials compare only where `scale` is the same.

    allow_isolated: evaluate atoms without neighbours too, which only reference crystals may have.
    """

    name: str
    scale: str
    elements: frozenset[str]
    allow_isolated: bool

    def evaluate(self, structures: Sequence[Structure], forces: bool = True) -> list[PointResult]: ...

    def evaluate_cells(self, cells: Sequence[Cell | str], forces: bool = True) -> list[PointResult]: ...


def resolve(name: str) -> str:
    """The potential meant by `name`: "auto" is M3GNet where it can be had, and is right, else CHGNet, always at hand.

    "module:attribute" names an ASE calculator, or what makes one; a folder, what `rlgen.foretell` wrote there.
    """
    if name == "auto":
        chosen = "m3gnet" if _m3gnet_is_right() else "chgnet"
        log.info("energy=auto: using %s", chosen)
        return chosen
    must_be_known(name)
    return name


def must_be_known(name: str) -> None:
    """UserError: `name` is none that `resolve` knows. Nothing is loaded, so that this can be asked before a run."""
    if name != "auto" and name not in POTENTIALS and ":" not in name and not _is_taught(name):
        raise UserError(
            f"energy={name}: unknown potential; known are auto, {', '.join(sorted(POTENTIALS))}, an ASE calculator as "
            "my.module:make_calculator, or a folder that rlgen.foretell wrote"
        )


def _is_taught(name: str) -> bool:
    return (Path(name) / TAUGHT).is_file()


def has_forces(name: str) -> bool:
    """Whether crystals can relax in the potential of that name."""
    return name not in _WITHOUT_FORCES and not _is_taught(name)


def must_relax(name: str) -> None:
    """UserError: nothing can relax in the potential of that name."""
    if not has_forces(name):
        raise UserError(f"energy={name} gives energies of formation and no forces: nothing relaxes in it; take m3gnet, "
                        "tensornet or chgnet, or energies as written")


def _m3gnet_is_right() -> bool:
    """Whether M3GNet's weights are here, or on the hub, and pass their check: the hub may give others by their name."""
    from rlgen.energies.weights import M3GNET, folder_of

    if folder_of(M3GNET) is None:
        return False
    try:
        _load("m3gnet")
    except UserError as error:
        log.warning("energy=auto: not m3gnet, but chgnet: %s", error)
        return False
    return True


@lru_cache(maxsize=4)
def _load(name: str) -> Potential:
    if _is_taught(name):
        return import_module("rlgen.energies.megnet").MEGNetPotential.taught(Path(name))
    if name not in POTENTIALS:
        return import_module("rlgen.energies.ase_calculator").AsePotential.load(name)
    module, cls = POTENTIALS[name].split(":")
    return getattr(import_module(module), cls).load()


def load_potential(name: str = "auto") -> Potential:
    """The potential of that name, loaded and checked once per process; UserError where it cannot be, or is wrong."""
    return _load(resolve(name))
