"""The `text` representation: plain text (after CrystalTextLLM), written and read character by character.

    5.64 5.64 5.64          lengths in Å
    60.0 60.0 60.0          angles in degrees
    Cl                      for every atom its element,
    0.500 0.500 0.500       and its fractional coordinates

Prompts are short sentences (`sentences.Speech`). Their words are tokens of their own; all else, and all of the
answer, is single characters, which most tokenizers of language models have too. `<eos>` takes the place of the last
line end. Atoms may come in any order; what `encode` writes is the canonical cell, with falling atomic numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pymatgen.core import Element, Lattice, Structure

from policies.representations import text_format
from policies.representations.asked import Asked
from policies.representations.base import BOS, EOS, PAD, Representation, State
from policies.representations.canonical import canonical_cell
from policies.representations.quantiser import Q
from policies.representations.sentences import Speech, heard
from policies.representations.text_forced import TEMPLATE, Forced
from policies.representations.text_grammar import TextState
from policies.representations.text_masks import WholeMasks
from policies.representations.text_tables import CHARACTERS, Decimals, Tables
from rlgen.conditions import Category, Transform, read
from rlgen.types import Condition, CrystalError, UserError


class Text(Representation):
    """Writes and reads crystals of up to `max_atoms` atoms. lengths, angles, coordinates: decimals that are written.

    The published precision is lengths=1, angles=0, coordinates=2.
    """

    name = "text"
    characters = CHARACTERS

    def __init__(self, max_atoms: int = 200, lengths: int = 2, angles: int = 1, coordinates: int = 3,
                 conditions: Mapping[str, Any] | None = None):
        for key, value, low, high in (("lengths", lengths, 0, 4), ("angles", angles, 0, 3),
                                      ("coordinates", coordinates, 1, 4)):
            if not low <= value <= high:
                raise UserError(f"{key}={value} decimals is not in {low} to {high}")
        # Not the tokens of other prompts: these are sentences.
        self.max_atoms, self.decimals = max_atoms, Decimals(lengths, angles, coordinates)
        self.conditions = read(conditions or {})
        self._speech = Speech(self.conditions)
        words = self._speech.words
        self.vocabulary = ["<pad>", "<bos>", "<eos>", *CHARACTERS, *words]
        self.first = {"special": 0, "character": 3, "word": 3 + len(CHARACTERS)}
        self.sizes = {"special": 3, "character": len(CHARACTERS), "word": len(words)}
        self.prompt_length = 1 + self._speech.longest(max_atoms)
        self._tokens = {text: i for i, text in enumerate(self.vocabulary)}
        self._tables: dict[str, Tables] = {}

    @property
    def binned(self) -> dict[str, Transform | Category]:
        return {}

    @property
    def written(self) -> dict[str, Any]:
        d = self.decimals
        return {"max_atoms": self.max_atoms, "lengths": d.lengths, "angles": d.angles, "coordinates": d.coordinates}

    @property
    def max_length(self) -> int:
        d = self.decimals
        lattice = 3 * (4 + d.lengths + bool(d.lengths)) + 3 * (4 + d.angles + bool(d.angles))
        return self.prompt_length + lattice + self.max_atoms * (3 + 3 * (3 + d.coordinates))

    @property
    def layout(self) -> str:
        d = self.decimals
        return f"text-1 {d.lengths}/{d.angles}/{d.coordinates} {self.prompt_length}"

    def encode(self, structure: Structure) -> list[int]:
        """The tokens after the prompt, `<eos>` included, of the canonical cell.

        Raises CrystalError for what cannot be written, and for cells and distances that the grammar never allows.
        """
        cell = canonical_cell(structure)
        if len(cell.numbers) > self.max_atoms:
            raise CrystalError("parse", f"{len(cell.numbers)} atoms in the primitive cell, at most {self.max_atoms}")
        d = self.decimals
        text = text_format.write(cell.parameters, cell.numbers, cell.grid / Q, d)
        text_format.check(*text_format.read(text, self.max_atoms))
        return self.tokens(text)

    def decode(self, ids: Sequence[int]) -> Structure:
        """The crystal written by the tokens after the prompt. Raises CrystalError naming what is wrong."""
        return _structure(*self.decode_arrays(ids))

    def decode_arrays(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lattice vectors (3, 3) in Å, fractional coordinates (N, 3) and atomic numbers (N,); as `decode`."""
        ids = [int(i) for i in ids]
        if EOS not in ids:
            raise CrystalError("parse", "the sequence does not end")
        ids = ids[: ids.index(EOS)]
        low, high = self.first["character"], self.first["word"]
        odd = next((i for i in ids if not low <= i < high), None)
        if odd is not None:
            name = self.vocabulary[odd] if 0 <= odd < len(self.vocabulary) else str(odd)
            raise CrystalError("parse", f"{name} where a character belongs")
        parameters, frac, numbers = text_format.read("".join(self.vocabulary[i] for i in ids), self.max_atoms)
        return Lattice.from_parameters(*parameters).matrix, frac, numbers

    def write(self, structure: Structure) -> str:
        """The text of a crystal as it is: its own cell, order and origin. Raises CrystalError off the grid's range."""
        if not structure.is_ordered or not all(isinstance(site.specie.symbol, str) and
                                               Element.is_valid_symbol(site.specie.symbol) for site in structure):
            raise CrystalError("chemistry", "only sites of one element each can be written")
        numbers = np.array([site.specie.Z for site in structure])
        return text_format.write(np.array(structure.lattice.parameters), numbers, structure.frac_coords, self.decimals)

    def parse(self, text: str) -> Structure:
        """The crystal that a text describes, with any number of decimals. Raises CrystalError naming what is wrong."""
        parameters, frac, numbers = text_format.read(text, self.max_atoms)
        return _structure(Lattice.from_parameters(*parameters).matrix, frac, numbers)

    def tokens(self, text: str) -> list[int]:
        """The tokens of an answer, `<eos>` included."""
        return [*(self._tokens[c] for c in text.removesuffix("\n")), EOS]

    def augment(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The same crystal with a random origin on the grid and its atoms in random order."""
        newline = self._tokens["\n"]
        return text_format.shuffle(ids, newline, self.first["character"], self.decimals.coordinates, rng)

    def prompt(self, condition: Condition) -> list[int]:
        """The prompt tokens of a condition, padded to `prompt_length`. Raises UserError for values out of range."""
        self.check({key: value for key, value in condition.items() if key != TEMPLATE})
        return self._said(self._speech.speak(condition, self.max_atoms))

    def _said(self, text: str) -> list[int]:
        said = [self._tokens[piece] for piece in self._speech.split(text)]
        return [BOS, *said, *[PAD] * (self.prompt_length - 1 - len(said))]

    def unasked(self, ids: torch.Tensor) -> torch.Tensor:
        p = self.prompt_length
        prompts = [self._said(self._speech.without_properties(text)) for text in self._texts(ids[:, :p])]
        return torch.cat([torch.tensor(prompts, device=ids.device).view(-1, p), ids[:, p:]], 1)

    def _texts(self, prompts: torch.Tensor) -> list[str]:
        return ["".join(self.vocabulary[i] for i in row if i > EOS) for row in prompts.tolist()]

    def read_prompts(self, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found = torch.tensor([heard(text) for text in self._texts(prompts)], device=prompts.device).view(-1, 3)
        return found[:, 0], found[:, 1], found[:, 2]

    def start(self, prompts: torch.Tensor, conditions: Sequence[Condition] | None = None) -> State:
        """As in all representations; a condition's `text_forced.TEMPLATE` fixes what is known of its crystal."""
        _, exact, owed = self.read_prompts(prompts)
        conditions = conditions if conditions is not None else [{}] * len(prompts)
        state = TextState(self.tables(prompts.device), exact, owed, [Asked.of(c) for c in conditions], self.max_atoms)
        templates = [c.get(TEMPLATE) for c in conditions]
        return Forced(state, templates) if any(t is not None for t in templates) else state

    def masks(self, ids: torch.Tensor, conditions: Sequence[Condition] | None = None) -> torch.Tensor:
        # Training may run in half precision; distances between atoms must not.
        with torch.autocast("cpu", enabled=False):
            state = self.start(ids[:, : self.prompt_length].cpu(), conditions)
            if not isinstance(state, TextState) or state.contents.hard:
                return super().masks(ids, conditions)
            return WholeMasks(state, ids[:, self.prompt_length :].cpu())().to(ids.device)

    def tables(self, device: torch.device) -> Tables:
        """What the grammar looks up, made once for each device."""
        if str(device) not in self._tables:
            tables = Tables(self.decimals, self.first["character"], len(self.vocabulary), device)
            self._tables[str(device)] = tables
        return self._tables[str(device)]


def _structure(lattice: np.ndarray, frac: np.ndarray, numbers: np.ndarray) -> Structure:
    return Structure(Lattice(lattice), [Element.from_Z(int(z)) for z in numbers], frac)
