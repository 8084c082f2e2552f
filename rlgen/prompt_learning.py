"""Which prompts are worth asking, learnt from what their crystals earned, as far as diversity allows.

A policy answers prompts that are drawn from the data, and how much a crystal earns depends more on its prompt than on
anything the policy can still choose. So the distribution of prompts is the first thing that a generator can learn: this
estimates what space groups, sizes and elements earn, and draws those more often that earn more, up to where the
diversity of what is asked falls to a given share of the data's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pymatgen.core import Element
from scipy.sparse import csr_matrix

from policies.prompts import PromptTable
from rlgen.types import Condition

#: Samples' worth of belief that a feature earns like any other (ridge).
SHRINK = 16.0
#: The steepest weights: exp(STEEPEST · value). While little is known, values are small, and so is what they change.
STEEPEST = 8.0


class PromptLearning:
    """What prompts of a table have earned so far, and the table with the weights that follow, `current`."""

    def __init__(self, prompts: PromptTable):
        self.prompts = self.current = prompts
        self.groups, self.group = np.unique(prompts.space_group, return_inverse=True)
        self.sizes, self.size = np.unique(prompts.n_atoms, return_inverse=True)
        self.elements = np.unique(prompts.elements[prompts.elements > 0])
        _, self.pair = np.unique(self.group * len(self.sizes) + self.size, return_inverse=True)
        count = len(self.groups) + len(self.sizes) + len(self.elements)
        self.gram, self.earned = np.zeros((count + 1, count + 1)), np.zeros(count + 1)  # the last is the mean
        self.rows = self._rows()

    def _rows(self) -> csr_matrix:
        """(M, features) of the table: its group, its size, and a share of each of its elements, one of which is told.
        """
        p = self.prompts
        there = p.elements > 0
        of, places = np.nonzero(there)
        element = np.searchsorted(self.elements, p.elements[of, places])
        g, n = len(self.groups), len(self.sizes)
        rows = np.arange(len(p))
        features = np.concatenate([self.group, g + self.size, g + n + element])
        share = np.concatenate([np.ones(2 * len(p)), (1 / there.sum(1))[of]])
        return csr_matrix((share, (np.concatenate([rows, rows, of]), features)), (len(p), len(self.earned) - 1))

    def observe(self, conditions: Sequence[Condition], rewards: np.ndarray, keep: float) -> None:
        """Take in what samples (B) of some prompts earned (B,), and weight the table by what is known now.

        keep: the share that stays of the exp-entropies of space groups, of these with sizes, and of elements, and of
        the mean size.
        """
        g, n = len(self.groups), len(self.sizes)
        x = np.zeros((len(conditions), len(self.earned)))
        x[:, -1] = 1.0
        for row, condition in zip(x, conditions, strict=True):
            for key, known, first in (("space_group", self.groups, 0), ("n_atoms", self.sizes, g)):
                if key in condition and (at := np.searchsorted(known, condition[key])) < len(known):
                    row[first + at] = known[at] == condition[key]
            z = Element(condition["element"].split("-")[0]).Z if condition.get("element") else 0
            if z and (at := np.searchsorted(self.elements, z)) < len(self.elements):
                row[g + n + at] = self.elements[at] == z
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
        of_elements = (weights @ self.rows)[len(self.groups) + len(self.sizes) :]
        shares = [np.bincount(self.group, weights), np.bincount(self.pair, weights), of_elements]
        entropies = [float(np.exp(-sum(p[p > 0] * np.log(p[p > 0])))) for p in shares]
        return np.array([*entropies, weights @ self.prompts.n_atoms])

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
