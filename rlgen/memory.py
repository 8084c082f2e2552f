"""What a run has found so far, so that writing it again earns less and less: by crystal, by formula, by prototype.

A bucket holds the samples that are alike, as in the diversity filters of REINVENT (Blaschke et al., J. Cheminform. 12,
68 (2020)): a crystal keeps the share f(n / size) of its reward, where n samples were in its bucket before it. It is in
one bucket of each kind, and the three shares are multiplied. What the shapes f are for is in docs/diversity.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlgen.protostructure import read_label

#: The share of its reward that is left to a crystal, by how full its bucket is.
SHAPES: dict[str, Callable[[float], float]] = {
    "none": lambda fill: 1.0,
    "inverse": lambda fill: 1 / (1 + fill),
    "step": lambda fill: float(fill < 1),
    "linear": lambda fill: max(0.0, 1 - fill),
    "sigmoid": lambda fill: 1 / (1 + math.exp(min((2 * fill - 1) / 0.15, 700.0))),
}
KINDS = ("crystal", "formula", "prototype")


class Memory:
    """Samples of the whole run by protostructure label, and by the formula and prototype that it names.

    settings: those under `memory`. asked: the share of the prompts that ask for (space group, atoms of the primitive
    cell), the group being the one that labels name. samples: how many were drawn. sun: labels of S.U.N. crystals.
    """

    def __init__(self, settings: Any, asked: Callable[[int, int], float]):
        self.asked = asked
        # Read once: a look into settings takes longer than all the rest.
        self.min_score, self.quota = float(settings.min_score), float(settings.prototype.quota)
        self._shapes = [SHAPES[settings[kind].shape] for kind in KINDS]
        self._sizes = [int(settings[kind].bucket) for kind in KINDS]
        self.samples = 0
        self.crystals: Counter[str] = Counter()
        self.formulas: Counter[str] = Counter()
        self.prototypes: Counter[str] = Counter()
        self.sun: set[str] = set()
        self.sun_prototypes: set[str] = set()

    def discount(self, labels: Sequence[str | None], totals: np.ndarray) -> np.ndarray:
        """(B,) share of its total (B,) that each sample keeps, earlier ones of this batch included; None, for a sample
        that is no crystal, keeps 1. Those whose total is at least `min_score` are remembered."""
        self.samples += len(labels)
        result = np.ones(len(labels))
        for i, (label, total) in enumerate(zip(labels, totals, strict=True)):
            if label is not None:
                result[i] = self._share(label)
                if total >= self.min_score:
                    self._remember(label, 1)
        return result

    def _share(self, label: str) -> float:
        crystal, formula, prototype = self._shapes
        size, formula_size, room = self._sizes
        share = crystal(self.crystals[label] / size)
        if (found := read_label(label)) is None:
            return share
        share *= formula(self.formulas[found.formula] / formula_size)
        # Besides, room for what was asked for: each prototype belongs to one space group and size.
        asked = self.quota * self.samples * self.asked(found.space_group, found.n_atoms)
        return share * prototype(self.prototypes[found.prototype] / (room + asked))

    def _remember(self, label: str, times: int) -> None:
        self.crystals[label] += times
        if (found := read_label(label)) is not None:
            self.formulas[found.formula] += times
            self.prototypes[found.prototype] += times

    def add_sun(self, label: str) -> None:
        """Remember a crystal that was stable and new; the same one again changes nothing."""
        self.sun.add(label)
        if (found := read_label(label)) is not None:
            self.sun_prototypes.add(found.prototype)

    def scalars(self) -> dict[str, float]:
        """How many different crystals, formulas and prototypes were found, and how many S.U.N. ones."""
        kinds = ("crystals", "formulas", "prototypes", "sun", "sun_prototypes")
        return {f"memory/{kind}": float(len(getattr(self, kind))) for kind in kinds}

    def state(self) -> dict[str, Any]:
        """For `checkpoint.save_state`: two texts and an array, so that 100,000s of crystals are written in a moment."""
        return {"samples": self.samples, "labels": "\n".join(self.crystals), "sun": "\n".join(sorted(self.sun)),
                "counts": np.array(list(self.crystals.values()), np.int64)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; the memory must be a new one."""
        self.samples = state["samples"]
        for label, times in zip(state["labels"].splitlines(), state["counts"].tolist(), strict=True):
            self._remember(label, times)
        for label in state["sun"].splitlines():
            self.add_sun(label)
