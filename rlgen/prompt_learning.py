"""Which prompts are worth asking, learnt from what their crystals earned, as far as diversity allows.

A policy answers prompts that are drawn from the data, and learners compare crystals of one prompt only: that some
prompts earn more than others teaches the policy nothing. This estimates what space groups, sizes and elements earn, and
draws those more often that earn more, up to where the diversity of what is asked falls to a given share of the data's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from pymatgen.core import Element
from scipy.sparse import csr_matrix

from policies.prompts import PromptTable
from rlgen.conditions import symbols
from rlgen.metrics import exp_entropies
from rlgen.types import Condition

#: Samples' worth of belief that a feature earns like any other (ridge).
SHRINK = 16.0
#: The steepest weights: exp(STEEPEST · value). While little is known, values are small, and so is what they change.
STEEPEST = 8.0


class PromptLearning:
    """What prompts of a table have earned so far, and the table with the weights that follow, `current`."""

    def __init__(self, prompts: PromptTable):
        self.prompts = self.current = prompts
        #: Sums over all samples, with a last place for the mean; numbers until there are any.
        self.gram: Any = 0.0
        self.earned: Any = 0.0

    @cached_property
    def features(self) -> dict[tuple[str, Any], int]:
        """The place of every space group, size and element of the table."""
        p = self.prompts
        elements = np.unique(p.elements[p.elements > 0]).tolist()
        found = [*(("space_group", group) for group in np.unique(p.space_group).tolist()),
                 *(("n_atoms", size) for size in np.unique(p.n_atoms).tolist()),
                 *(("element", Element.from_Z(z).symbol) for z in elements)]
        return {feature: place for place, feature in enumerate(found)}

    @cached_property
    def rows(self) -> csr_matrix:
        """(M, features) of the table: its group, its size, and a share of each of its elements, one of which is told.
        """
        p = self.prompts
        groups, group = np.unique(p.space_group, return_inverse=True)
        sizes, size = np.unique(p.n_atoms, return_inverse=True)
        of, places = np.nonzero(p.elements)
        _, element = np.unique(p.elements[of, places], return_inverse=True)
        rows, first = np.arange(len(p)), len(groups) + len(sizes)
        columns = np.concatenate([group, len(groups) + size, first + element])
        share = np.concatenate([np.ones(2 * len(p)), (1 / np.count_nonzero(p.elements, axis=1))[of]])
        return csr_matrix((share, (np.concatenate([rows, rows, of]), columns)), (len(p), len(self.features)))

    @cached_property
    def cell(self) -> np.ndarray:
        """(M,) which pair of space group and size each row of the table has."""
        return self.prompts.cells()[1]

    def observe(self, conditions: Sequence[Condition], rewards: np.ndarray, keep: float) -> None:
        """Take in what samples (B) of some prompts earned (B,), and weight the table by what is known now.

        keep: the share that stays of the exp-entropies of space groups, of these with sizes, and of elements, and of
        the mean size.
        """
        x = np.zeros((len(conditions), len(self.features) + 1))
        x[:, -1] = 1.0
        for row, condition in zip(x, conditions, strict=True):
            told = [(key, condition.get(key)) for key in ("space_group", "n_atoms")]
            told += [("element", symbol) for symbol in symbols(condition.get("element"))[:1]]  # the first is told
            row[[self.features[feature] for feature in told if feature in self.features]] = 1.0
        self.gram = self.gram + x.T @ x  # `state` may be held by others
        self.earned = self.earned + x.T @ rewards
        self.current = self.prompts.weighted(self.weights(self.values(), keep))

    def values(self) -> np.ndarray:
        """(M,) what a crystal of each row's prompt is expected to earn, less the mean."""
        penalty = np.full(len(self.earned), SHRINK)
        penalty[-1] = 1e-9
        found = np.linalg.solve(self.gram + np.diag(penalty), self.earned)
        return self.rows @ found[:-1]

    def weights(self, values: np.ndarray, keep: float) -> np.ndarray:
        """(M,) shares of prompts, in proportion to the table's times exp(s · value), s as large as `keep` allows."""
        base = self.prompts.shares_of_rows()
        least = keep * self.diversity(base)

        def tilted(steepness: float) -> np.ndarray:
            weights = base * np.exp(steepness * (values - values.max()))
            return weights / weights.sum()

        low, high = 0.0, STEEPEST
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if (self.diversity(tilted(middle)) >= least).all() else (low, middle)
        return tilted(low)

    def diversity(self, weights: np.ndarray) -> np.ndarray:
        """(4,) exp-entropies of space groups, of these with sizes, of elements, and the mean size."""
        of = weights @ self.rows
        kinds = np.array([kind for kind, _ in self.features])
        shares = [of[kinds == "space_group"], np.bincount(self.cell, weights), of[kinds == "element"]]
        return np.array([*(exp_entropies(part[None])[0] for part in shares), weights @ self.prompts.n_atoms])

    def scalars(self) -> dict[str, float]:
        """How far what is asked is from the data: the share of each diversity that is left, and the KL in nats."""
        now, base = self.current.shares_of_rows(), self.prompts.shares_of_rows()
        kept = self.diversity(now) / self.diversity(base)
        names = ("space_groups", "space_groups_and_sizes", "elements", "n_atoms")
        some = now > 0
        return {f"prompts/{name}": float(v) for name, v in zip(names, kept, strict=True)} | {
            "prompts/kl": float((now[some] * np.log(now[some] / base[some])).sum())}

    def state(self) -> dict[str, Any]:
        """For `checkpoint.save_state`."""
        return {"gram": self.gram, "earned": self.earned, "weights": self.current.weights}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.gram, self.earned = state["gram"], state["earned"]
        self.current = replace(self.prompts, weights=state["weights"])
