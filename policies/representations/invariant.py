"""The `invariant` representation: formula, space group, cell, and one atom of every orbit (after Mat2Seq).

A sequence is the prompt; the formula of the primitive cell as (element, count) by rising electronegativity and an end
of formula; the space group as the Hall number of its standard setting; the free parameters of its crystal system
(angles first); then for every orbit its element, its multiplicity in the conventional cell (that of the International
Tables) and x, y, z of one atom; then `<eos>`. The atom is the one whose coordinates, on the grid, are the smallest of
its orbit. Orbits come by (electronegativity, -multiplicity, x, y, z). The operations of the group make the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from pymatgen.core import Element, Lattice, Structure

from policies.representations import lattice
from policies.representations.base import EOS, MAX_Z, Representation, State
from policies.representations.invariant_digits import DigitsState, Spelling
from policies.representations.quantiser import Q
from policies.representations.symmetry import grid_positions, symmetrise
from policies.representations.wyckoff import centring, operations, positions
from rlgen.types import Condition, CrystalError, UserError

#: The Hall number of the standard setting of space groups 1 to 230; a test holds it against the operations used.
HALL_NUMBERS = (
    1, 2, 3, 6, 9, 18, 21, 30, 39, 57, 60, 63, 72, 81, 90, 108, 109, 112, 115, 116, 119, 122, 123, 124, 125, 128, 134,
    137, 143, 149, 155, 161, 164, 170, 173, 176, 182, 185, 191, 197, 203, 209, 212, 215, 218, 221, 227, 229, 230, 234,
    239, 245, 251, 257, 263, 266, 269, 275, 279, 284, 290, 292, 298, 304, 310, 313, 316, 323, 334, 336, 337, 338, 341,
    343, 349, 350, 351, 352, 353, 354, 355, 356, 357, 358, 360, 362, 363, 365, 366, 367, 368, 369, 370, 371, 372, 373,
    374, 375, 376, 377, 378, 379, 380, 381, 382, 383, 384, 385, 386, 387, 388, 389, 390, 391, 392, 393, 394, 395, 396,
    397, 398, 399, 400, 401, 403, 405, 406, 407, 409, 411, 412, 413, 415, 417, 418, 419, 421, 423, 424, 425, 427, 429,
    430, 431, 432, 433, 435, 436, 438, 439, 440, 441, 442, 443, 444, 446, 447, 448, 449, 450, 452, 454, 455, 456, 457,
    458, 460, 462, 463, 464, 465, 466, 467, 468, 469, 470, 471, 472, 473, 474, 475, 476, 477, 478, 479, 480, 481, 482,
    483, 484, 485, 486, 487, 488, 489, 490, 491, 492, 493, 494, 496, 497, 499, 500, 501, 502, 503, 504, 505, 506, 507,
    508, 509, 510, 511, 512, 513, 514, 515, 516, 517, 519, 520, 522, 523, 524, 526, 528, 529, 530,
)
#: Of all positions of all groups, in the conventional cell.
MULTIPLICITIES = (1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 36, 48, 64, 96, 192)


@cache
def ranks() -> tuple[int, ...]:
    """By atomic number (0 unused) the place among all elements by (electronegativity, Z); those without one last."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns of every element that has no electronegativity
        key = {z: float(Element.from_Z(z).X) for z in range(1, MAX_Z + 1)}
    order = sorted(key, key=lambda z: (np.isnan(key[z]), 0.0 if np.isnan(key[z]) else key[z], z))
    return (-1, *(order.index(z) for z in range(1, MAX_Z + 1)))


class Invariant(Representation):
    """Writes and reads crystals of up to `max_atoms` atoms in the primitive cell, in any of the 230 space groups.

    numbers: "bins", one token a number, or "digits", as published.
    """

    name = "invariant"
    has_groups = True

    def __init__(self, max_atoms: int = 200, numbers: str = "bins", conditions: Mapping[str, Any] | None = None):
        if numbers not in ("bins", "digits"):
            raise UserError(f"numbers={numbers!r} of the representation invariant; known: bins, digits")
        self.numbers = numbers
        header = {"count": [f"×{i}" for i in range(1, max_atoms + 1)],
                  "end_formula": ["<formula>"],
                  "hall": [f"hall{number}" for number in HALL_NUMBERS]}
        multiplicity = {"multiplicity": [f"multiplicity{m}" for m in MULTIPLICITIES]}
        super().__init__(max_atoms, header | multiplicity | {"digit": list("0123456789")} if numbers == "digits" else
                         header | lattice.BLOCKS | multiplicity | {"coordinate": [f"{i}/{Q}" for i in range(Q)]},
                         conditions)

    @cached_property
    def _spelling(self) -> Spelling | None:
        """How its numbers are written by digits; None where they are not."""
        return Spelling(Invariant(self.max_atoms), self) if self.numbers == "digits" else None

    def cell_blocks(self, group: int) -> list[str]:
        """The blocks of the tokens that write a cell of a space group."""
        return [block for i in lattice.FREE[lattice.system_of(group)] for block in lattice.KINDS[i >= 3][1:3]]

    @property
    def layout(self) -> str:
        """The order of the elements is part of it: it may change with pymatgen's electronegativities."""
        name = "invariant-1" if self.numbers == "bins" else "invariant-digits-1"
        return f"{name} " + " ".join(map(str, ranks()))

    @property
    def max_length(self) -> int:
        elements = min(MAX_Z, self.max_atoms)
        cell, site = (lattice.free_tokens(0), 5) if self.numbers == "bins" else (30, 14)
        return self.prompt_length + 2 * elements + 2 + cell + site * self.max_atoms + 1

    @property
    def written(self) -> dict[str, Any]:
        return {"max_atoms": self.max_atoms, "numbers": self.numbers}

    def encode(self, structure: Structure) -> list[int]:
        if self._spelling:
            return self._spelling.spell(self._spelling.bins.encode(structure))
        crystal = symmetrise(structure)
        table, points = positions(crystal.group), centring(crystal.group)[0]
        sites, counts = [], dict.fromkeys((site.z for site in crystal.sites), 0)
        for site in crystal.sites:
            orbit, m = grid_positions(table[site.index], site.grid), table[site.index].multiplicity
            if len(np.unique(_keys(orbit))) != m:
                raise CrystalError("symmetry", "on the grid, atoms coincide that symmetry keeps apart")
            counts[site.z] += m // points
            sites.append((ranks()[site.z], -m, *min(map(tuple, orbit.tolist())), site.z))
        if (n := sum(counts.values())) > self.max_atoms:
            raise CrystalError("parse", f"{n} atoms in the primitive cell, at most {self.max_atoms}")
        ids = []
        for z in sorted(counts, key=lambda z: ranks()[z]):
            ids += [self.first["element"] + z, self.first["count"] + counts[z] - 1]
        ids += [self.first["end_formula"], self.first["hall"] + crystal.group - 1]
        ids += lattice.write(crystal.parameters, lattice.system_of(crystal.group), self.first)
        for _, m, x, y, z, element in sorted(sites):
            ids += [self.first["element"] + element, self.first["multiplicity"] + MULTIPLICITIES.index(-m)]
            ids += [self.first["coordinate"] + k for k in (x, y, z)]
        return [*ids, EOS]

    def decode(self, ids: Sequence[int]) -> Structure:
        matrix, frac, numbers = self.decode_arrays(ids)
        return Structure(Lattice(matrix), [Element.from_Z(z) for z in numbers], frac)

    def decode_arrays(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Primitive cell (3, 3) Å, fractional coordinates (N, 3) and atomic numbers (N,); raises as `decode`."""
        if self._spelling:
            return self._spelling.bins.decode_arrays(self._spelling.read(ids))
        formula, group, parameters, sites = self.parse(ids)
        points, to_primitive = centring(group)
        rotations, shifts = operations(group)
        made, grids, numbers = dict.fromkeys(formula, 0), [], []
        for z, m, grid in sites:
            orbit = (rotations @ grid + shifts * (Q // 24)) @ to_primitive % Q
            keys = np.unique(_keys(orbit))
            if len(keys) * points != m:
                raise CrystalError("symmetry", f"the multiplicity of {tuple(grid.tolist())}/{Q} in group {group} is "
                                   f"{len(keys) * points}, not {m}")
            made[z] = made.get(z, 0) + len(keys)
            grids.append(np.stack([keys // Q**2, keys // Q % Q, keys % Q], 1))
            numbers += [z] * len(keys)
        if made != formula:
            raise CrystalError("chemistry", f"the sites make {_formula(made)}, the formula says {_formula(formula)}")
        rows = np.linalg.inv(to_primitive) @ Lattice.from_parameters(*parameters).matrix
        return rows, np.concatenate(grids) / Q, np.array(numbers)

    def parse(self, ids: Sequence[int]) -> tuple[dict[int, int], int, np.ndarray, list[tuple[int, int, np.ndarray]]]:
        """{Z: count in the primitive cell}, group, (6,) cell parameters, and (Z, multiplicity, grid) of each site."""
        ids = [int(i) for i in ids]
        if EOS not in ids:
            raise CrystalError("parse", "the sequence does not end")
        ids = ids[: ids.index(EOS)]
        formula, at = self._read_formula(ids)
        group = self.read(ids[at], "hall") + 1
        system = lattice.system_of(group)
        begin = at + 1 + lattice.free_tokens(system)
        if len(ids) < begin + 5 or (len(ids) - begin) % 5:
            raise CrystalError("parse", f"{len(ids) - at - 1} tokens do not make a cell and whole sites")
        parameters = lattice.read(ids[at + 1 : begin], system, self)
        sites = []
        for i in range(begin, len(ids), 5):
            z, m = self._read_element(ids[i]), MULTIPLICITIES[self.read(ids[i + 1], "multiplicity")]
            sites.append((z, m, np.array([self.read(t, "coordinate") for t in ids[i + 2 : i + 5]], dtype=np.int64)))
        return formula, group, parameters, sites

    def _read_formula(self, ids: list[int]) -> tuple[dict[int, int], int]:
        """{Z: count} and the place of the Hall number."""
        if self.first["end_formula"] not in ids[:-1]:
            raise CrystalError("parse", "no formula, or nothing after it")
        end = ids.index(self.first["end_formula"])
        formula: dict[int, int] = {}
        for i in range(0, end, 2):
            z, n = self._read_element(ids[i]), self.read(ids[i + 1], "count") + 1
            if z in formula:
                raise CrystalError("parse", f"{Element.from_Z(z)} is twice in the formula")
            formula[z] = n
        if not formula:
            raise CrystalError("parse", "an empty formula")
        return formula, end + 1

    def _read_element(self, token: int) -> int:
        z = self.read(token, "element")
        if z == 0:
            raise CrystalError("parse", "no element where one belongs")
        return z

    def written_group(self, ids: Sequence[int]) -> int | None:
        ids = [int(i) for i in ids]
        _, at = self._read_formula(ids)
        return self.read(ids[at], "hall") + 1

    def start(self, prompts: torch.Tensor, conditions: Sequence[Condition] | None = None) -> State:
        from policies.representations.invariant_grammar import InvariantState

        systems = self.read_systems(prompts, conditions).tolist()
        if self._spelling:  # what prompts always say is the same
            inner = InvariantState(self._spelling.bins, prompts, conditions, systems)
            return DigitsState(self._spelling, len(self.vocabulary), inner)
        return InvariantState(self, prompts, conditions, systems)


def _keys(grid: np.ndarray) -> np.ndarray:
    """(N,) one number for each of grid points (N, 3) in 0..Q-1, in their lexicographic order."""
    return (grid[:, 0] * Q + grid[:, 1]) * Q + grid[:, 2]


def _formula(counts: dict[int, int]) -> str:
    return " ".join(f"{Element.from_Z(z)}{n}" for z, n in counts.items())
