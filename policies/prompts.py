"""What is asked of crystals: the joint distribution of the training data's conditions, kept with the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Element

from policies.representations.asked import Asked
from rlgen.types import Condition, UserError

FILE = "prompts.safetensors"
#: Crystals that are tried for a condition before it goes without what they would add.
TRIES = 20


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

    def sample(self, n: int, rng: np.random.Generator, *, power: float = 1.0,
               keep: Mapping[str, float] | None = None) -> list[Condition]:
        """n conditions drawn from the data's joint distribution.

        power: pairs of space group and size are drawn with the power of their share; 1: as the data have them, 0: each
        as often as any other. keep: the probability that a condition asks for its `space_group`, `n_atoms`, `element`.
        """
        if power == 1:
            rows = rng.integers(len(self), size=n)
        else:
            _, cell, counts = self._cells()
            weights = counts[cell] ** (power - 1.0)
            rows = rng.choice(len(self), size=n, p=weights / weights.sum())
        conditions = [self.row(int(i), rng) for i in rows]
        if keep is None or min(keep.values()) >= 1:
            return conditions
        return [{k: v for k, v in condition.items() if rng.random() < keep[k]} for condition in conditions]

    def shares(self, power: float = 1.0) -> dict[tuple[int, int], float]:
        """How much of what is asked with this `power` goes to each pair of space group and number of atoms."""
        pairs, _, counts = self._cells()
        weights = counts**power
        return {(int(group), int(n)): float(w) for (group, n), w in zip(pairs, weights / weights.sum(), strict=True)}

    def _cells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of space group and size (K, 2), which of them each crystal has (M,), and how many have each (K,)."""
        columns = np.stack([self.space_group, self.n_atoms], axis=1)
        pairs, cell, counts = np.unique(columns, axis=0, return_inverse=True, return_counts=True)
        return pairs, cell.reshape(-1), counts.astype(float)

    def answering(self, asked: Condition, n: int, rng: np.random.Generator, possible: Callable[[Condition], bool]
                  ) -> list[Condition]:
        """n conditions that hold what is asked; what it leaves open follows the crystals of the data that fit it.

        possible: whether a condition can be met at all. Where no crystal fits, only what is asked is.
        """
        rows = self._fitting(asked)
        found: list[Condition] = []
        for _ in range(n):
            some: Sequence[int] = rng.choice(rows, TRIES).tolist() if len(rows) else []
            drawn = ({**self._open(i, asked, rng), **asked} for i in some)
            found.append(next((condition for condition in drawn if possible(condition)), dict(asked)))
        return found

    def _fitting(self, asked: Condition) -> np.ndarray:
        """Rows of the crystals that could answer: of the group, size and number of elements that are asked for."""
        hard = Asked.of(asked) or Asked()
        fits = np.ones(len(self), bool)
        for key, column in (("space_group", self.space_group), ("n_atoms", self.n_atoms)):
            if key in asked:
                fits &= column == int(asked[key])
        if "element" in asked and hard.formula is None:
            fits &= (self.elements == Element(asked["element"]).Z).any(1)
        kinds = (self.elements > 0).sum(1)
        if hard.formula is not None:
            fits &= (self.n_atoms % sum(count for _, count in hard.formula) == 0) & (kinds == len(hard.formula))
        if hard.elements is not None:
            fits &= kinds <= len(hard.elements)
        if hard.max_atoms is not None:
            fits &= self.n_atoms <= hard.max_atoms
        return np.flatnonzero(fits)

    def _open(self, i: int, asked: Condition, rng: np.random.Generator) -> dict[str, Any]:
        """The condition that crystal i answers, but for an element where others are asked for."""
        drawn = dict(self.row(i, rng))
        if "formula" in asked or "elements" in asked:
            del drawn["element"]
        return drawn

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
