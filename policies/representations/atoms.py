"""The `atoms` representation: the canonical primitive cell, then species x y z for every atom (after Materium).

A sequence is a prompt of four tokens, `<bos> space_group n_atoms element` (each of the last three may be "unknown"),
then twelve lattice tokens (a, b, c as whole ångströms and hundredths; alpha, beta, gamma as degrees and twentieths),
then four tokens an atom in order of falling atomic number, then `<eos>`. What a token means follows from its place
alone, which is what makes the grammar below cheap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from pymatgen.core import Element, Lattice, Structure

from policies.representations.canonical import canonical_cell
from policies.representations.quantiser import (
    ANGLE_STEPS,
    LENGTH_STEPS,
    MAX_ANGLE,
    MAX_LENGTH,
    MIN_ANGLE,
    MIN_LENGTH,
    Q,
    lattice_parameters,
    quantise_lattice,
)
from rlgen.types import Condition, CrystalError, UserError

MAX_Z = 118
PAD, BOS, EOS = 0, 1, 2
PROMPT = 4
LATTICE = 12
#: Angles must leave this much room (degrees) to the ones that make a flat cell.
FLAT_MARGIN = 2.0


class Atoms:
    """Writes and reads crystals of up to `max_atoms` atoms in the primitive cell."""

    name = "atoms"
    prompt_length = PROMPT
    pad, eos = PAD, EOS

    def __init__(self, max_atoms: int = 200):
        self.max_atoms = max_atoms
        blocks = {
            "special": ["<pad>", "<bos>", "<eos>"],
            "space_group": ["group?"] + [f"group{i}" for i in range(1, 231)],
            "n_atoms": ["atoms?"] + [f"atoms{i}" for i in range(1, max_atoms + 1)],
            "element": ["element?"] + [Element.from_Z(z).symbol for z in range(1, MAX_Z + 1)],
            "length": [f"{i}Å" for i in range(MIN_LENGTH, MAX_LENGTH)],
            "hundredth": [f".{i:02d}Å" for i in range(LENGTH_STEPS)],
            "degree": [f"{i}°" for i in range(MIN_ANGLE, MAX_ANGLE + 1)],
            "twentieth": [f"+{i}/20°" for i in range(ANGLE_STEPS)],
            "coordinate": [f"{i}/{Q}" for i in range(Q)],
        }
        self.vocabulary: list[str] = []
        #: First token of each block.
        self.first: dict[str, int] = {}
        for name, tokens in blocks.items():
            self.first[name] = len(self.vocabulary)
            self.vocabulary += tokens
        self.sizes = {name: len(tokens) for name, tokens in blocks.items()}
        self.grammar = AtomsGrammar(self)

    @property
    def parameters(self) -> dict[str, int]:
        """What `make` needs to build this representation again."""
        return {"max_atoms": self.max_atoms}

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence, prompt and `<eos>` included."""
        return PROMPT + LATTICE + 4 * self.max_atoms + 1

    @property
    def version(self) -> str:
        """Hash of the vocabulary and layout: checkpoints and caches of another version are refused."""
        return hashlib.sha256("\n".join(["atoms-1", *self.vocabulary]).encode()).hexdigest()[:16]

    def encode(self, structure: Structure) -> list[int]:
        """The tokens after the prompt, `<eos>` included. Raises CrystalError for what cannot be written."""
        cell = canonical_cell(structure)
        if len(cell.numbers) > self.max_atoms:
            raise CrystalError("parse", f"{len(cell.numbers)} atoms in the primitive cell, at most {self.max_atoms}")
        ids = []
        for i, k in enumerate(quantise_lattice(cell.parameters)):
            whole, part = ("length", "hundredth") if i < 3 else ("degree", "twentieth")
            steps, lowest = (LENGTH_STEPS, MIN_LENGTH) if i < 3 else (ANGLE_STEPS, MIN_ANGLE)
            ids += [self.first[whole] + int(k) // steps - lowest, self.first[part] + int(k) % steps]
        for z, xyz in zip(cell.numbers, cell.grid, strict=True):
            ids += [self.first["element"] + int(z), *(self.first["coordinate"] + int(k) for k in xyz)]
        return [*ids, EOS]

    def decode(self, ids: Sequence[int]) -> Structure:
        """The crystal written by the tokens after the prompt. Raises CrystalError naming what is wrong."""
        ids = list(ids)
        if EOS not in ids:
            raise CrystalError("parse", "the sequence does not end")
        ids = ids[: ids.index(EOS)]
        if len(ids) < LATTICE + 4 or (len(ids) - LATTICE) % 4:
            raise CrystalError("parse", f"{len(ids)} tokens do not make a lattice and whole atoms")
        numbers, grid = [], []
        k = [self._read(ids[2 * i], whole) * steps + self._read(ids[2 * i + 1], part) for i, (whole, part, steps) in
             enumerate([("length", "hundredth", LENGTH_STEPS)] * 3 + [("degree", "twentieth", ANGLE_STEPS)] * 3)]
        k = np.array(k) + np.array([MIN_LENGTH * LENGTH_STEPS] * 3 + [MIN_ANGLE * ANGLE_STEPS] * 3)
        for at in range(LATTICE, len(ids), 4):
            z = self._read(ids[at], "element")
            if z == 0:
                raise CrystalError("parse", "an atom of no element")
            numbers.append(z)
            grid.append([self._read(token, "coordinate") for token in ids[at + 1 : at + 4]])
        parameters = lattice_parameters(k)
        alpha, beta, gamma = parameters[3:]
        if not abs(alpha - beta) < gamma < min(alpha + beta, 360 - alpha - beta):
            raise CrystalError("geometry", f"no cell has the angles {alpha}, {beta}, {gamma}")
        species = [Element.from_Z(z) for z in numbers]
        return Structure(Lattice.from_parameters(*parameters), species, np.array(grid) / Q)

    def _read(self, token: int, block: str) -> int:
        value = int(token) - self.first[block]
        if not 0 <= value < self.sizes[block]:
            name = self.vocabulary[token] if 0 <= token < len(self.vocabulary) else str(token)
            raise CrystalError("parse", f"{name} where a {block} belongs")
        return value

    def prompt(self, condition: Condition) -> list[int]:
        """The four prompt tokens of a condition. Raises UserError for a value that cannot be asked for."""
        unknown = set(condition) - {"space_group", "n_atoms", "element"}
        if unknown:
            raise UserError(f"cannot ask for {', '.join(sorted(unknown))}; known: space_group, n_atoms, element")
        group, n = int(condition.get("space_group", 0)), int(condition.get("n_atoms", 0))
        symbol = condition.get("element")
        if not 0 <= group <= 230:
            raise UserError(f"space_group={group} is not in 1 to 230")
        if not 0 <= n <= self.max_atoms:
            raise UserError(f"n_atoms={n} is not in 1 to {self.max_atoms}")
        if symbol is not None and not Element.is_valid_symbol(symbol):
            raise UserError(f"element={symbol!r} is no element")
        z = Element(symbol).Z if symbol else 0
        return [BOS, self.first["space_group"] + group, self.first["n_atoms"] + n, self.first["element"] + z]


class AtomsGrammar:
    """Which tokens may come next. Every prefix it allows can be completed.

    Beyond the kind of token that each place asks for: atoms come in order of falling atomic number; the number of
    atoms asked for is exact; the element asked for occurs; angles make a cell.
    """

    def __init__(self, representation: Atoms):
        rep = self.rep = representation
        v, first, size = len(rep.vocabulary), rep.first, rep.sizes
        kinds = ["space_group", "n_atoms", "element", *["length", "hundredth"] * 3, *["degree", "twentieth"] * 3]
        # On the CPU whatever the default device: transformers builds models on "meta" while it loads them.
        self.slots = torch.zeros(len(kinds) + 4, v, dtype=torch.bool, device="cpu")  # prompt, lattice, species, x, y, z
        for i, kind in enumerate([*kinds, "element", *["coordinate"] * 3]):
            self.slots[i, first[kind] : first[kind] + size[kind]] = True
        self.slots[len(kinds), first["element"]] = False  # an atom is of some element
        whole, part = torch.arange(size["degree"], device="cpu"), torch.arange(ANGLE_STEPS, device="cpu")
        self.angle = MIN_ANGLE + whole[:, None] + part / ANGLE_STEPS  # (121, 20) degrees
        self.angle[-1, 1:] = float("nan")  # nothing beyond the last whole degree

    def mask(self, ids: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Legal next tokens after each prefix that ends at position start..T-1.

        ids: (B, T) sequences from `<bos>` on, right-padded. Returns (B, T - start, V) bool. Positions past `<eos>`
        allow `<pad>` only.
        """
        first = self.rep.first
        b, t = ids.shape
        device = ids.device
        slots = self.slots.to(device)
        place = torch.arange(start, t, device=device)  # a prefix ending at p is followed by the token of place p
        n_fixed = PROMPT - 1 + LATTICE
        slot = torch.where(place < n_fixed, place, n_fixed + (place - n_fixed) % 4)
        legal = slots[slot].expand(b, -1, -1).clone()

        asked_n = (ids[:, 2] - first["n_atoms"]) if t > 2 else torch.zeros(b, dtype=torch.long, device=device)
        asked_z = (ids[:, 3] - first["element"]) if t > 3 else torch.zeros(b, dtype=torch.long, device=device)
        for column, p in enumerate(range(start, t)):
            at = p - n_fixed
            if at >= 0 and at % 4 == 0:
                self._species(legal[:, column], ids[:, : p + 1], at // 4, asked_n, asked_z)
            elif PROMPT - 1 + 6 <= p < n_fixed and ((p - PROMPT + 1) % 2 == 1 or p >= n_fixed - 2):
                self._angles(legal[:, column], ids, p)
        ended = (ids == EOS).cumsum(1)[:, start:] > 0
        legal[ended] = False
        legal[..., PAD] = ended
        return legal

    def _species(self, legal: torch.Tensor, prefix: torch.Tensor, placed: int, asked_n: torch.Tensor,
                 asked_z: torch.Tensor) -> None:
        """Narrow (B, V) to the species (or the end) that may follow `placed` atoms."""
        first = self.rep.first["element"]
        z = torch.arange(MAX_Z + 1, device=prefix.device)[None]  # (1, 119)
        species = prefix[:, PROMPT + LATTICE :: 4][:, :placed] - first  # (B, placed)
        limit = torch.where(asked_n > 0, asked_n, self.rep.max_atoms)
        owed = (asked_z > 0) & ~(species == asked_z[:, None]).any(1)
        allowed = z > 0
        if placed:
            allowed = allowed & (z <= species[:, -1:])
        allowed = allowed & (~owed[:, None] | (z >= asked_z[:, None]))
        last = owed & (placed == limit - 1)
        allowed = allowed & (~last[:, None] | (z == asked_z[:, None]))
        full = placed >= limit
        legal[:, first : first + MAX_Z + 1] = allowed & ~full[:, None]
        legal[:, EOS] = full | ((asked_n == 0) & ~owed & (placed > 0))

    def _angles(self, legal: torch.Tensor, ids: torch.Tensor, p: int) -> None:
        """Narrow (B, V) at an angle's twentieths, and at gamma, to the angles that make a cell."""
        first = self.rep.first
        which, is_part = divmod(p - (PROMPT - 1) - 6, 2)
        values = [self._angle_at(ids, i) for i in range(which)]
        angle = self.angle.to(ids.device)
        good = ~angle.isnan()[None].expand(len(ids), -1, -1)
        if which == 2:
            low = (values[0] - values[1]).abs() + FLAT_MARGIN
            high = torch.minimum(values[0] + values[1], 360 - values[0] - values[1]) - FLAT_MARGIN
            good = good & (angle > low[:, None, None]) & (angle < high[:, None, None])
        if is_part:
            whole = (ids[:, p] - first["degree"]).clamp(0, len(angle) - 1)
            legal[:, first["twentieth"] : first["twentieth"] + ANGLE_STEPS] = good[torch.arange(len(ids)), whole]
        else:
            legal[:, first["degree"] : first["degree"] + len(angle)] = good.any(2)

    def _angle_at(self, ids: torch.Tensor, i: int) -> torch.Tensor:
        """(B,) degrees of the i-th angle, already written."""
        at = PROMPT + 6 + 2 * i
        whole = (ids[:, at] - self.rep.first["degree"]).clamp(0, MAX_ANGLE - MIN_ANGLE)
        part = (ids[:, at + 1] - self.rep.first["twentieth"]).clamp(0, ANGLE_STEPS - 1)
        return MIN_ANGLE + whole + part / ANGLE_STEPS
