"""What a run has written so far, so that writing it again earns less and less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


class Memory:
    """Counts of crystals by protostructure label, over the whole run."""

    def __init__(self, counts: dict[str, int] | None = None):
        self.crystals = Counter(counts or {})

    def discount(self, labels: Sequence[str | None]) -> np.ndarray:
        """(B,) 1 / (1 + how often the crystal was written before), earlier samples of this batch included; they are
        remembered. None, for a sample that is no crystal, gives 1."""
        result = np.ones(len(labels))
        for i, label in enumerate(labels):
            if label is not None:
                result[i] = 1 / (1 + self.crystals[label])
                self.crystals[label] += 1
        return result
