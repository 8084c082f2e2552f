"""What is asked of crystals: the joint distribution of the training data's conditions, kept with the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pymatgen.core import Element

from rlgen.types import Condition, UserError

FILE = "prompts.safetensors"


@dataclass(frozen=True)
class PromptTable:
    """One row a training crystal. space_group: (M,). n_atoms: (M,). elements: (M, E) atomic numbers, 0-padded."""

    space_group: np.ndarray
    n_atoms: np.ndarray
    elements: np.ndarray

    def __len__(self) -> int:
        return len(self.space_group)

    @classmethod
    def of(cls, space_groups: Sequence[int] | np.ndarray, numbers: Sequence[Sequence[int] | np.ndarray]) -> PromptTable:
        """From each crystal's space group and the atomic numbers in its primitive cell."""
        sets = [sorted({int(z) for z in n}) for n in numbers]
        elements = np.zeros((len(sets), max(map(len, sets))), np.uint8)
        for row, found in zip(elements, sets, strict=True):
            row[: len(found)] = found
        return cls(np.array(space_groups, np.int16), np.array([len(n) for n in numbers], np.int16), elements)

    def row(self, i: int, rng: np.random.Generator) -> Condition:
        """The condition that crystal i answers, with one of its elements drawn at random."""
        element = int(rng.choice(self.elements[i][self.elements[i] > 0]))
        return {"space_group": int(self.space_group[i]), "n_atoms": int(self.n_atoms[i]),
                "element": Element.from_Z(element).symbol}

    def sample(self, n: int, rng: np.random.Generator, keep: float = 1.0) -> list[Condition]:
        """n conditions drawn from the data's joint distribution; each property is kept with probability `keep`."""
        rows = [self.row(int(i), rng) for i in rng.integers(len(self), size=n)]
        return [{k: v for k, v in row.items() if keep >= 1 or rng.random() < keep} for row in rows]

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        save_file({"space_group": self.space_group, "n_atoms": self.n_atoms, "elements": self.elements},
                  folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> PromptTable:
        from safetensors.numpy import load_file

        if not (folder / FILE).exists():
            raise UserError(f"{folder} has no {FILE}: it is not a policy that rlgen.pretrain wrote")
        return cls(**load_file(folder / FILE))
