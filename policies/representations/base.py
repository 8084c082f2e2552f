"""What every way of writing a crystal has in common: the vocabulary, the prompt, and a grammar as a state machine."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from pymatgen.core import Element, Structure

from policies.representations.canonical import random_equivalent
from rlgen.conditions import ALWAYS, HARD, SYSTEM, Category, Transform, crystal_system, known, read, symbols
from rlgen.types import Condition, CrystalError, UserError

MAX_Z = 118
PAD, BOS, EOS = 0, 1, 2


class State(ABC):
    """Where the grammar is in B unfinished sequences: what may come next, then what came.

    Every prefix that it allows can be completed. Its cost per token does not grow with what was written before times
    the vocabulary. Rows that have ended allow padding only. All of it is on the CPU, where hundreds of operations on a
    few rows each are fastest.
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
    #: Whether its grammar sees to the space group, so that a crystal system can be asked of it without training.
    has_groups: ClassVar[bool] = False

    def __init__(self, max_atoms: int, blocks: dict[str, list[str]], conditions: Mapping[str, Any] | None = None):
        """blocks: names of the tokens that follow those of the prompt, kind by kind.

        conditions: the scales of the properties that prompts also tell, as `rlgen.conditions.read` takes them. Their
        tokens come last, so that those of crystals do not depend on them.
        """
        self.max_atoms = max_atoms
        self.conditions = read(conditions or {})
        #: Tokens of the prompt: `<bos>`, space group, number of atoms, an element, then a property each; each may be
        #: "unknown".
        self.prompt_length = 1 + len(ALWAYS) + len(self.conditions)
        self.vocabulary: list[str] = []
        #: First token of each block, and how many it has.
        self.first: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        told = {block_of(name): [f"{name}?", *scale.token_names(name)] for name, scale in self.conditions.items()}
        for name, tokens in (prompt_blocks(max_atoms) | blocks | told).items():
            self.first[name], self.sizes[name] = len(self.vocabulary), len(tokens)
            self.vocabulary += tokens

    @property
    def binned(self) -> dict[str, Transform | Category]:
        """The properties that each have a token in prompts, the last ones, by their scale."""
        return self.conditions

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes: its class and parameters, of which it is made again."""
        return partial(type(self), **self.parameters), ()

    @property
    def written(self) -> dict[str, Any]:
        """The parameters that decide how a crystal is written, whatever is asked."""
        return {"max_atoms": self.max_atoms}

    @property
    def parameters(self) -> dict[str, Any]:
        """What `make` needs to build this representation again."""
        scales = {name: scale.to_dict() for name, scale in self.conditions.items()}
        return self.written | ({"conditions": scales} if scales else {})

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
        """Hash of vocabulary, layout and scales: checkpoints and caches of another version are refused."""
        scales = [json.dumps(self.parameters["conditions"], sort_keys=True)] if self.conditions else []
        return hashlib.sha256("\n".join([self.layout, *scales, *self.vocabulary]).encode()).hexdigest()[:16]

    @abstractmethod
    def encode(self, structure: Structure) -> list[int]:
        """The tokens after the prompt, `<eos>` included. Raises CrystalError for what cannot be written."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> Structure:
        """The crystal written by the tokens after the prompt. Raises CrystalError naming what is wrong."""

    @abstractmethod
    def start(self, prompts: torch.Tensor, conditions: Sequence[Condition] | None = None) -> State:
        """The grammar after prompts (B, P), on the CPU. Conditions add what prompts cannot say (`conditions.HARD`)."""

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
        with torch.autocast("cpu", enabled=False):  # distances in bfloat16 would not be those of sampling
            written = ids.cpu()
            state = self.start(written[:, : self.prompt_length], conditions)
            found = []
            for t in range(self.prompt_length, ids.shape[1]):
                found.append(state.legal())
                state.advance(written[:, t])
            return torch.stack([*found, state.legal()], 1).to(ids.device)

    def prompt(self, condition: Condition) -> list[int]:
        """The prompt tokens of a condition. Raises UserError for a value that cannot be asked for."""
        self.check(condition)
        group, n = int(condition.get("space_group", 0)), int(condition.get("n_atoms", 0))
        symbol = next(iter(symbols(condition.get("element"))), None)
        if not 0 <= group <= 230:
            raise UserError(f"space_group={group} is not in 1 to 230")
        if not 0 <= n <= self.max_atoms:
            raise UserError(f"n_atoms={n} is not in 1 to {self.max_atoms}")
        if symbol is not None and not Element.is_valid_symbol(symbol):
            raise UserError(f"element={symbol!r} is no element")
        z = Element(symbol).Z if symbol else 0
        told = [self.first[block_of(name)] + place for name, place in self.places(condition).items()]
        return [BOS, self.first["space_group"] + group, self.first["n_atoms"] + n, self.first["element"] + z, *told]

    def places(self, condition: Condition) -> dict[str, int]:
        """The place of each property's token in its block: 0 where it is not asked for, else 1 and its bin.

        None and NaN are not asked for. UserError names the property whose value is none.
        """
        found = {}
        for name, scale in self.conditions.items():
            value = condition.get(name)
            try:
                found[name] = 1 + scale.index(value) if known(value) else 0
            except UserError as error:
                raise UserError(f"{name}={value}: {error}") from None
        return found

    def check(self, condition: Condition) -> None:
        """UserError for what cannot be asked for at all, and for a space group that is not of the crystal system."""
        can = [*ALWAYS, *self.conditions, *HARD]
        if self.has_groups and "crystal_system" not in can:
            can.append("crystal_system")
        if unknown := sorted(set(condition) - set(can)):
            raise UserError(f"cannot ask for {', '.join(unknown)}; known: {', '.join(can)}. A policy learns what a "
                            f"property of the data is by python -m rlgen.pretrain conditions={','.join(unknown)}")
        system, group = condition.get("crystal_system"), int(condition.get("space_group") or 0)
        if known(system) and group and SYSTEM.index(system) != crystal_system(group):
            raise UserError(f"space_group={group} is {SYSTEM.names[crystal_system(group)]}, not {system}")

    def unasked(self, ids: torch.Tensor) -> torch.Tensor:
        """Sequences (B, T) whose prompts tell no property."""
        ids = ids.clone()
        for at, name in enumerate(self.conditions, 1 + len(ALWAYS)):
            ids[:, at] = self.first[block_of(name)]
        return ids

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

    def read_systems(self, prompts: torch.Tensor, conditions: Sequence[Condition] | None) -> torch.Tensor:
        """(B,) crystal system asked for by prompts (B, P) or conditions: 1 to 7, 0 for unknown."""
        found = torch.zeros(len(prompts), dtype=torch.long, device=prompts.device)
        if "crystal_system" in self.conditions:
            at = 1 + len(ALWAYS) + list(self.conditions).index("crystal_system")
            found = prompts[:, at] - self.first[block_of("crystal_system")]
        for i, condition in enumerate(conditions or ()):
            if known(system := condition.get("crystal_system")):
                found[i] = SYSTEM.index(system) + 1
        return found

    def read(self, token: int, block: str) -> int:
        """A token's place in its block; CrystalError if it belongs to another."""
        value = int(token) - self.first[block]
        if not 0 <= value < self.sizes[block]:
            name = self.vocabulary[token] if 0 <= token < len(self.vocabulary) else str(token)
            raise CrystalError("parse", f"{name} where a {block} belongs")
        return value


def block_of(name: str) -> str:
    """The block of a property's tokens: first "unknown", then its bins."""
    return f"asked:{name}"


def prompt_blocks(max_atoms: int) -> dict[str, list[str]]:
    """The tokens that prompts are made of, the same for all ways of writing."""
    return {"special": ["<pad>", "<bos>", "<eos>"],
            "space_group": ["group?"] + [f"group{i}" for i in range(1, 231)],
            "n_atoms": ["atoms?"] + [f"atoms{i}" for i in range(1, max_atoms + 1)],
            "element": ["element?"] + [Element.from_Z(z).symbol for z in range(1, MAX_Z + 1)]}
