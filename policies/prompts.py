"""What is asked of crystals: the joint distribution of the training data's conditions, kept with the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Element

from policies.representations.asked import Asked
from rlgen.conditions import ALWAYS, CATEGORIES, Category, Transform, groups_of, known, symbols
from rlgen.types import Condition, UserError

FILE = "prompts.safetensors"
#: Crystals that are tried for a condition before it goes without what they would add.
TRIES = 20
#: Crystals fit a number that is asked for to within this share of its scale; if fewer than FEWEST do, the next best do.
NEAR = 0.02
FEWEST = 20
#: Columns of properties in the file are told from the others by this.
PROPERTY = "property:"


@dataclass(frozen=True)
class PromptTable:
    """One row a training crystal. space_group: (M,). n_atoms: (M,). elements: (M, E) atomic numbers, 0-padded.

    properties: (M,) float32 by name, NaN where unknown; crystal system and stability by their place. weights: (M,) how
    often each is asked, where not all alike.
    """

    space_group: np.ndarray
    n_atoms: np.ndarray
    elements: np.ndarray
    properties: dict[str, np.ndarray] = field(default_factory=dict)
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.space_group)

    @classmethod
    def of(cls, space_groups: Sequence[int] | np.ndarray, numbers: Sequence[Sequence[int] | np.ndarray],
           properties: Mapping[str, Sequence[float] | np.ndarray] | None = None) -> PromptTable:
        """From each crystal's space group, the atomic numbers in its primitive cell, and what else is known of it."""
        sets = [sorted({int(z) for z in n}) for n in numbers]
        elements = np.zeros((len(sets), max(map(len, sets))), np.uint8)
        for row, found in zip(elements, sets, strict=True):
            row[: len(found)] = found
        return cls(np.array(space_groups, np.int16), np.array([len(n) for n in numbers], np.int16), elements,
                   {name: np.array(values, np.float32) for name, values in sorted((properties or {}).items())})

    def weighted(self, weights: np.ndarray) -> PromptTable:
        """The same rows, asked for in proportion to weights (M,)."""
        return replace(self, weights=(weights / weights.sum()).astype(np.float32))

    def shares_of_rows(self, power: float = 1.0) -> np.ndarray:
        """(M,) how much of what is asked is each row's. power: as of `sample`."""
        shares = np.ones(len(self)) if self.weights is None else self.weights.astype(float)
        if power != 1:
            _, cell = self.cells()
            shares = shares * np.bincount(cell, shares)[cell] ** (power - 1.0)
        return shares / shares.sum()

    def row(self, i: int, rng: np.random.Generator) -> Condition:
        """The condition that crystal i answers, with one of its elements drawn at random."""
        element = int(rng.choice(self.elements[i][self.elements[i] > 0]))
        told = {name: CATEGORIES[name].names[int(values[i])] if name in CATEGORIES else float(values[i])
                for name, values in self.properties.items() if not np.isnan(values[i])}
        return {"space_group": int(self.space_group[i]), "n_atoms": int(self.n_atoms[i]),
                "element": Element.from_Z(element).symbol, **told}

    def sample(self, n: int, rng: np.random.Generator, *, power: float = 1.0,
               keep: Mapping[str, float] | None = None) -> list[Condition]:
        """n conditions drawn from the data's joint distribution.

        power: pairs of space group and size are drawn with the power of their share; 1: as the data have them, 0: each
        as often as any other. keep: the probability that a condition asks for its `space_group`, `n_atoms`, `element`,
        1 where not named, or for a property, 0 where not named.
        """
        rows = rng.choice(len(self), size=n, p=self.shares_of_rows(power))
        shares = {**dict.fromkeys(ALWAYS, 1.0), **(keep or {})}
        conditions = [self.row(int(i), rng) for i in rows]
        return [{k: v for k, v in condition.items() if rng.random() < shares.get(k, 0.0)} for condition in conditions]

    def shares(self, power: float = 1.0) -> dict[tuple[int, int], float]:
        """How much of what is asked with this `power` goes to each pair of space group and number of atoms."""
        pairs, cell = self.cells()
        found = np.bincount(cell, self.shares_of_rows(power))
        return {(int(group), int(n)): float(share) for (group, n), share in zip(pairs, found, strict=True)}

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of space group and size (K, 2), and which of them each crystal has (M,)."""
        columns = np.stack([self.space_group, self.n_atoms], axis=1)
        pairs, cell = np.unique(columns, axis=0, return_inverse=True)
        return pairs, cell.reshape(-1)

    def answering(self, asked: Condition, n: int, rng: np.random.Generator, possible: Callable[[Condition], bool],
                  scales: Mapping[str, Transform | Category] | None = None) -> list[Condition]:
        """n conditions that hold what is asked; what it leaves open follows the crystals of the data that fit it.

        Properties that are not asked for stay unknown, and of several elements any may come first, which the policy is
        told. possible: whether a condition can be met at all. Where no crystal fits, only what is asked is. scales: of
        the properties.
        """
        rows = self._fitting(asked, scales or {})
        found: list[Condition] = []
        for _ in range(n):
            some: Sequence[int] = rng.choice(rows, TRIES).tolist() if len(rows) else []
            told = {**asked, **_named(asked, rng)}
            drawn = ({**self._open(i, asked, rng), **told} for i in some)
            found.append(next((condition for condition in drawn if possible(condition)), told))
        return found

    def _fitting(self, asked: Condition, scales: Mapping[str, Transform | Category]) -> np.ndarray:
        """Rows of the crystals that could answer: of the group, size and number of elements that are asked for, one of
        those that must be there among them, and with the properties, or nearly."""
        hard = Asked.of(asked) or Asked()
        fits = np.ones(len(self), bool)
        for key, column in (("space_group", self.space_group), ("n_atoms", self.n_atoms)):
            if key in asked:
                fits &= column == int(asked[key])
        if known(asked.get("crystal_system")):
            groups = groups_of(asked["crystal_system"])
            fits &= (self.space_group >= groups.start) & (self.space_group < groups.stop)
        kinds, required = (self.elements > 0).sum(1), symbols(asked.get("element") or asked.get("chemical_system"))
        if required and hard.formula is None:
            fits &= np.isin(self.elements, [Element(symbol).Z for symbol in required]).any(1) & (kinds >= len(required))
        if hard.formula is not None:
            fits &= (self.n_atoms % sum(count for _, count in hard.formula) == 0) & (kinds == len(hard.formula))
        if hard.elements is not None:
            fits &= kinds <= len(hard.elements)
        if hard.max_atoms is not None:
            fits &= self.n_atoms <= hard.max_atoms
        return self._nearest(np.flatnonzero(fits), asked, scales)

    def _nearest(self, rows: np.ndarray, asked: Condition, scales: Mapping[str, Transform | Category]) -> np.ndarray:
        """Those of some rows of the category asked for, with numbers within `NEAR` of it or else the nearest `FEWEST`.

        What is beyond the range of a scale is all alike.
        """
        away = np.zeros(len(rows))
        for name, scale in scales.items():
            if not known(asked.get(name)) or name not in self.properties:
                continue
            found = self.properties[name][rows]
            if isinstance(scale, Category):
                away[found != scale.index(asked[name])] = np.inf
            else:
                here, there = (np.clip(scale.scaled(v), 0, 1) for v in (found, asked[name]))
                away += np.nan_to_num((here - there) ** 2, nan=np.inf)
        limit = np.sort(away)[: FEWEST][-1] if len(rows) else 0.0
        return rows[(away <= max(NEAR**2, limit)) & np.isfinite(away)]

    def _open(self, i: int, asked: Condition, rng: np.random.Generator) -> dict[str, Any]:
        """What prompts always say of crystal i, but for an element where others are asked for."""
        drawn = {key: value for key, value in self.row(i, rng).items() if key in ALWAYS}
        if "formula" in asked or "elements" in asked:
            del drawn["element"]
        return drawn

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        told = {PROPERTY + name: values for name, values in self.properties.items()}
        if self.weights is not None:
            told["weights"] = self.weights
        save_file({"space_group": self.space_group, "n_atoms": self.n_atoms, "elements": self.elements, **told},
                  folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> PromptTable:
        from safetensors.numpy import load_file

        if not (folder / FILE).exists():
            raise UserError(f"{folder} has no {FILE}: it is not a policy that rlgen.pretrain wrote")
        arrays = load_file(folder / FILE)
        told = {name: arrays.pop(name) for name in sorted(arrays) if name.startswith(PROPERTY)}
        return cls(**arrays, properties={name.removeprefix(PROPERTY): values for name, values in told.items()})


def _named(asked: Condition, rng: np.random.Generator) -> dict[str, Any]:
    """What the prompt says of the elements that must be there: it names the first, which may be any of them."""
    several, system = symbols(asked.get("element")), symbols(asked.get("chemical_system"))
    if several:
        return {"element": "-".join(rng.permutation(several))}
    return {"element": str(rng.choice(system))} if system else {}
