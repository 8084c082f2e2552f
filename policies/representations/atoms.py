"""The `atoms` representation: the canonical primitive cell, then species x y z for every atom (after Materium).

A sequence is a prompt of four tokens, `<bos> space_group n_atoms element` (each of the last three may be "unknown"),
then twelve lattice tokens (alpha, beta, gamma as degrees and twentieths; a, b, c as whole ångströms and hundredths),
then four tokens an atom, then `<eos>`; or the lattice after the atoms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pymatgen.core import Element, Lattice, Structure

from policies.representations.atoms_grammar import LATTICE, ORDERS, AtomsState
from policies.representations.base import EOS, Representation
from policies.representations.canonical import CanonicalCell, canonical_cell
from policies.representations.lattice import BLOCKS, read, write
from policies.representations.quantiser import Q
from policies.representations.species import Species
from rlgen.types import Condition, CrystalError, UserError


class Atoms(Representation):
    """Writes and reads crystals of up to `max_atoms` atoms in the primitive cell.

    lattice: "first" or "last" (as Materium does). order: of the atoms, by "falling" or "rising" atomic number, by
    their coordinates ("xyz"), or "random", with a random origin, anew in each epoch. oxidation: whether species have an
    oxidation state.
    """

    name = "atoms"

    def __init__(self, max_atoms: int = 200, lattice: str = "first", order: str = "falling", oxidation: bool = False,
                 conditions: Mapping[str, Any] | None = None):
        for name, value, known in (("lattice", lattice, ("first", "last")), ("order", order, tuple(ORDERS)),
                                   ("oxidation", oxidation, (False, True))):
            if value not in known:
                raise UserError(f"{name}={value!r} of the representation atoms; known: {', '.join(map(str, known))}")
        self.lattice_first, self.order, self.oxidation = lattice == "first", order, bool(oxidation)
        self.species = Species.charged() if oxidation else Species.elements()
        #: Elements are told in prompts too, by the same tokens.
        self.block = "species" if oxidation else "element"
        own = {"species": list(self.species.names)} if oxidation else {}
        super().__init__(max_atoms, own | BLOCKS | {"coordinate": [f"{i}/{Q}" for i in range(Q)]}, conditions)

    @property
    def written(self) -> dict[str, Any]:
        return {"max_atoms": self.max_atoms, "lattice": "first" if self.lattice_first else "last",
                "order": self.order, "oxidation": self.oxidation}

    @property
    def max_length(self) -> int:
        return self.prompt_length + LATTICE + 4 * self.max_atoms + 1

    @property
    def layout(self) -> str:
        return " ".join(["atoms-2", *(f"{name}={value}" for name, value in self.written.items())])

    def encode(self, structure: Structure) -> list[int]:
        cell = canonical_cell(structure)
        if len(cell.numbers) > self.max_atoms:
            raise CrystalError("parse", f"{len(cell.numbers)} atoms in the primitive cell, at most {self.max_atoms}")
        lattice = write(cell.parameters, 0, self.first)
        species = self.first[self.block] + self.species.write(cell.numbers)
        atoms = np.column_stack([species, self.first["coordinate"] + cell.grid])[self._order(cell)].ravel().tolist()
        return [*lattice, *atoms, EOS] if self.lattice_first else [*atoms, *lattice, EOS]

    def _order(self, cell: CanonicalCell) -> np.ndarray:
        """(N,) in which the atoms of a canonical cell are written; one with random order begins as falling."""
        if self.order == "xyz":
            return np.lexsort(cell.grid.T[::-1])
        if self.order == "rising":
            return np.argsort(cell.numbers, kind="stable")
        return np.arange(len(cell.numbers))

    def decode(self, ids: Sequence[int]) -> Structure:
        matrix, frac, numbers = self.decode_arrays(ids)
        return Structure(Lattice(matrix), [Element.from_Z(z) for z in numbers.tolist()], frac)

    def decode_arrays(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lattice (3, 3; Å, rows), fractional coordinates (N, 3) and atomic numbers (N,) of what `decode` reads."""
        ids = list(ids)
        if EOS not in ids:
            raise CrystalError("parse", "the sequence does not end")
        ids = ids[: ids.index(EOS)]
        if len(ids) < LATTICE + 4 or (len(ids) - LATTICE) % 4:
            raise CrystalError("parse", f"{len(ids)} tokens do not make a lattice and whole atoms")
        lattice, atoms = (ids[:LATTICE], ids[LATTICE:]) if self.lattice_first else (ids[-LATTICE:], ids[:-LATTICE])
        parameters = read(lattice, 0, self)
        species = [self.species.z[self.read(token, self.block)] for token in atoms[::4]]
        if not all(species):
            raise CrystalError("parse", "an atom of no element")
        grid = [self.read(token, "coordinate") for i, token in enumerate(atoms) if i % 4]
        return Lattice.from_parameters(*parameters).matrix, np.array(grid).reshape(-1, 3) / Q, np.array(species)

    def augment(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.order != "random":
            return ids
        begin = LATTICE if self.lattice_first else 0
        end = len(ids) - 1 - (LATTICE - begin)
        atoms = rng.permutation(ids[begin:end].reshape(-1, 4))
        first = self.first["coordinate"]
        atoms[:, 1:] = (atoms[:, 1:] - first + rng.integers(Q, size=3)) % Q + first
        return np.concatenate([ids[:begin], atoms.ravel(), ids[end:]])

    def start(self, prompts: torch.Tensor, conditions: Sequence[Condition] | None = None) -> AtomsState:
        return AtomsState(self, prompts, conditions)
