"""What every way of writing a crystal has in common: the vocabulary, the prompt, and a grammar as a state machine."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pymatgen.core import Element, Structure

from policies.representations.asked import HARD, SOFT
from policies.representations.canonical import random_equivalent
from rlgen.types import Condition, CrystalError, UserError

MAX_Z = 118
PAD, BOS, EOS = 0, 1, 2


class State(ABC):
    """Where the grammar is in B unfinished sequences: what may come next, then what came.

    Every prefix that it allows can be completed. Its cost per token does not grow with what was written before times
    the vocabulary. Rows that have ended allow padding only.
    """

    @abstractmethod
    def legal(self) -> torch.Tensor:
        """(B, V) bool: the tokens that may come next."""

    @abstractmethod
    def advance(self, tokens: torch.Tensor) -> None:
        """Go on by one token (B,) a row."""

    @abstractmethod
    def keep(self, rows: int) -> None:
        """Forget all but the first rows."""


class Representation(ABC):
    """Writes crystals as tokens and reads them back. A sequence is prompt, crystal, `<eos>`."""

    name: ClassVar[str]
    pad, eos = PAD, EOS
    #: Tokens of the prompt: `<bos>`, space group, number of atoms, an element; each may be "unknown".
    prompt_length = 4

    def __init__(self, max_atoms: int, blocks: dict[str, list[str]]):
        """blocks: names of the tokens that follow those of the prompt, kind by kind."""
        self.max_atoms = max_atoms
        self.vocabulary: list[str] = []
        #: First token of each block, and how many it has.
        self.first: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        for name, tokens in (prompt_blocks(max_atoms) | blocks).items():
            self.first[name], self.sizes[name] = len(self.vocabulary), len(tokens)
            self.vocabulary += tokens

    @property
    def parameters(self) -> dict[str, Any]:
        """What `make` needs to build this representation again."""
        return {"max_atoms": self.max_atoms}

    @property
    @abstractmethod
    def max_length(self) -> int:
        """Tokens of the longest sequence, prompt and `<eos>` included."""

    @property
    @abstractmethod
    def layout(self) -> str:
        """Raise its number when what is written changes though the vocabulary does not."""

    @property
    def version(self) -> str:
        """Hash of the vocabulary and layout: checkpoints and caches of another version are refused."""
        return hashlib.sha256("\n".join([self.layout, *self.vocabulary]).encode()).hexdigest()[:16]

    @abstractmethod
    def encode(self, structure: Structure) -> list[int]:
        """The tokens after the prompt, `<eos>` included. Raises CrystalError for what cannot be written."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> Structure:
        """The crystal written by the tokens after the prompt. Raises CrystalError naming what is wrong."""

    @abstractmethod
    def start(self, prompts: torch.Tensor, conditions: Sequence[Condition] | None = None) -> State:
        """The grammar after prompts (B, P). Conditions add what prompts cannot say (`asked.HARD`)."""

    def written_group(self, ids: Sequence[int]) -> int | None:
        """The space group that the tokens after the prompt name, None if they do not say one."""
        return None

    def augment(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Another way to write the same crystal, drawn anew each epoch; itself where writing is canonical."""
        return ids

    def random_equivalent(self, structure: Structure, rng: np.random.Generator) -> Structure:
        """The same crystal, described otherwise."""
        return random_equivalent(structure, rng)

    def masks(self, ids: torch.Tensor, conditions: Sequence[Condition] | None = None) -> torch.Tensor:
        """Legal next tokens (B, T - P + 1, V) bool after the prompt and after each further token of ids (B, T)."""
        with torch.autocast(ids.device.type, enabled=False):  # distances in bfloat16 would not be those of sampling
            state = self.start(ids[:, : self.prompt_length], conditions)
            found = []
            for t in range(self.prompt_length, ids.shape[1]):
                found.append(state.legal())
                state.advance(ids[:, t])
            return torch.stack([*found, state.legal()], 1)

    def prompt(self, condition: Condition) -> list[int]:
        """The prompt tokens of a condition. Raises UserError for a value that cannot be asked for."""
        unknown = set(condition) - {*SOFT, *HARD}
        if unknown:
            raise UserError(f"cannot ask for {', '.join(sorted(unknown))}; known: {', '.join([*SOFT, *HARD])}")
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

    def possible(self, condition: Condition) -> bool:
        """Whether a condition can be met."""
        try:
            self.start(torch.tensor([self.prompt(condition)]), [condition])
        except UserError:
            return False
        return True

    def read_prompts(self, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Space group, number of atoms and atomic number asked for by prompts (B, P): (B,) each, 0 for unknown."""
        blocks = ("space_group", "n_atoms", "element")
        group, n, z = (prompts[:, i] - self.first[block] for i, block in enumerate(blocks, 1))
        return group, n, z

    def read(self, token: int, block: str) -> int:
        """A token's place in its block; CrystalError if it belongs to another."""
        value = int(token) - self.first[block]
        if not 0 <= value < self.sizes[block]:
            name = self.vocabulary[token] if 0 <= token < len(self.vocabulary) else str(token)
            raise CrystalError("parse", f"{name} where a {block} belongs")
        return value


def prompt_blocks(max_atoms: int) -> dict[str, list[str]]:
    """The tokens that prompts are made of, the same for all ways of writing."""
    return {"special": ["<pad>", "<bos>", "<eos>"],
            "space_group": ["group?"] + [f"group{i}" for i in range(1, 231)],
            "n_atoms": ["atoms?"] + [f"atoms{i}" for i in range(1, max_atoms + 1)],
            "element": ["element?"] + [Element.from_Z(z).symbol for z in range(1, MAX_Z + 1)]}
