"""The `orbits` representation: space group, cell, and occupied Wyckoff positions (after Matra-Genoa).

A sequence is the prompt, the space group, the free parameters of its crystal system (angles first), then for every
occupied position its orbit, its element and its free parameters only, then `<eos>`. Positions come in the order of
`wyckoff.positions`: those without free parameters first, then the others by letter. An orbit's token stands for a set
of affine expressions, so that groups that share an orbit share its token. The cell comes before the positions, so that
the grammar knows distances while coordinates are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pymatgen.core import Element, Lattice, Structure

from policies.representations import lattice, orbit_published
from policies.representations.base import EOS, MAX_Z, Representation, State
from policies.representations.orbit_tables import Tables, tables
from policies.representations.quantiser import Q
from policies.representations.symmetry import grid_positions, symmetrise
from policies.representations.wyckoff import centring, orbit_keys, positions
from rlgen.types import Condition, CrystalError, UserError


class Orbits(Representation):
    """Writes and reads crystals of up to `max_atoms` atoms in the primitive cell, in any of the 230 space groups.

    order: "interleaved", in which the grammar keeps atoms apart, or "published" (see `orbit_published`).
    """

    name = "orbits"
    has_groups = True

    def __init__(self, max_atoms: int = 200, order: str = "interleaved", conditions: Mapping[str, Any] | None = None):
        if order not in ("interleaved", "published"):
            raise UserError(f"order={order!r} of the representation orbits; known: interleaved, published")
        self.order, self.orbit_of = order, orbit_keys()
        blocks = {"orbit": [f"orbit{i}" for i in range(max(self.orbit_of.values()) + 1)], **lattice.BLOCKS,
                  "coordinate": [f"{i}/{Q}" for i in range(Q)]}
        if order == "published":
            blocks |= {"count": [f"×{i}" for i in range(1, max_atoms + 1)], "end_formula": ["<formula>"]}
        super().__init__(max_atoms, blocks, conditions)

    @property
    def layout(self) -> str:
        return "orbits-1" if self.order == "interleaved" else "orbits-published-1"

    @property
    def max_length(self) -> int:
        formula = 2 * min(MAX_Z, self.max_atoms) + 1 if self.order == "published" else self.max_atoms
        return self.prompt_length + 1 + lattice.free_tokens(0) + 4 * self.max_atoms + formula + 1

    @cached_property
    def tables(self) -> Tables:
        return tables(self.max_atoms)

    def encode(self, structure: Structure) -> list[int]:
        crystal = symmetrise(structure)
        table = positions(crystal.group)
        n = sum(table[site.index].multiplicity for site in crystal.sites) // centring(crystal.group)[0]
        if n > self.max_atoms:
            raise CrystalError("parse", f"{n} atoms in the primitive cell, at most {self.max_atoms}")
        if self.order == "published":
            return orbit_published.write(self, crystal)
        ids = [self.first["space_group"] + crystal.group]
        ids += lattice.write(crystal.parameters, lattice.system_of(crystal.group), self.first)
        for site in crystal.sites:
            orbit = self.orbit_of[crystal.group, table[site.index].letter]
            ids += [self.first["orbit"] + orbit, self.first["element"] + site.z]
            ids += [self.first["coordinate"] + k for k in site.grid]
        return [*ids, EOS]

    def decode(self, ids: Sequence[int]) -> Structure:
        matrix, frac, numbers = self.decode_arrays(ids)
        return Structure(Lattice(matrix), [Element.from_Z(z) for z in numbers], frac)

    def decode_arrays(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Primitive cell (3, 3) Å, fractional coordinates (N, 3) and atomic numbers (N,); raises as `decode`."""
        group, parameters, sites = self.parse(ids)
        points, to_primitive = centring(group)
        table = positions(group)
        grids, numbers = [], []
        for index, z, grid in sites:
            conventional = grid_positions(table[index], grid)
            primitive = np.unique(conventional @ to_primitive % Q, axis=0)
            if len(primitive) * points != table[index].multiplicity:
                raise CrystalError("symmetry", f"atoms of position {table[index].letter} of group {group} coincide")
            grids.append(primitive)
            numbers += [z] * len(primitive)
        frac = np.concatenate(grids) / Q
        rows = np.linalg.inv(to_primitive) @ Lattice.from_parameters(*parameters).matrix
        return rows, frac, np.array(numbers)

    def parse(self, ids: Sequence[int]) -> tuple[int, np.ndarray, list[tuple[int, int, np.ndarray]]]:
        """Group, (6,) cell parameters, and (index in `positions`, Z, grid) of each site, as written."""
        ids = [int(i) for i in ids]
        if EOS not in ids:
            raise CrystalError("parse", "the sequence does not end")
        ids = ids[: ids.index(EOS)]
        if not ids or not (group := self.read(ids[0], "space_group")):
            raise CrystalError("parse", "no space group")
        if self.order == "published":
            return orbit_published.parse(self, ids)
        system = lattice.system_of(group)
        at = 1 + lattice.free_tokens(system)
        if len(ids) < at + 2:
            raise CrystalError("parse", f"{len(ids)} tokens do not make a cell and an atom")
        parameters = lattice.read(ids[1:at], system, self)
        table, of_orbit = positions(group), self.tables.of_orbit[group]
        sites = []
        while at < len(ids):
            index = of_orbit.get(self.read(ids[at], "orbit"))
            if index is None:
                raise CrystalError("symmetry", f"{self.vocabulary[ids[at]]} is no orbit of group {group}")
            dof = table[index].dof
            if len(ids) < at + 2 + dof:
                raise CrystalError("parse", "the last site is not whole")
            z = self.read(ids[at + 1], "element")
            if z == 0:
                raise CrystalError("parse", "a site of no element")
            grid = np.array([self.read(token, "coordinate") for token in ids[at + 2 : at + 2 + dof]], dtype=np.int64)
            sites.append((index, z, grid))
            at += 2 + dof
        return group, parameters, sites

    def written_group(self, ids: Sequence[int]) -> int:
        return self.read(ids[0], "space_group")

    def start(self, prompts: torch.Tensor, conditions: Sequence[Condition] | None = None) -> State:
        from policies.representations.orbit_grammar import OrbitsState

        state = OrbitsState if self.order == "interleaved" else orbit_published.PublishedState
        return state(self, prompts, conditions)

    @property
    def written(self) -> dict[str, Any]:
        return {"max_atoms": self.max_atoms, "order": self.order}
