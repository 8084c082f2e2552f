"""Kinds of tokens: the blocks of a representation's vocabulary (element, coordinate, …), and what is kept by kind."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from accelerate import Accelerator

from policies.representations.base import Representation
from rlgen.types import UserError


class Kinds:
    """names (K,), and `of` (V,): the kind of each token."""

    def __init__(self, representation: Representation, device: torch.device):
        self.names = list(representation.first)
        sizes = torch.tensor(list(representation.sizes.values()))
        self.of = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(device)

    def weights(self, general: float, by_kind: Mapping[str, float], key: str) -> torch.Tensor:
        """(K,) a coefficient for each kind; UserError for a kind that the representation lacks or a negative one."""
        unknown = sorted(set(by_kind) - set(self.names))
        if unknown:
            raise UserError(f"{key}: no tokens of kind {', '.join(unknown)}; known: {', '.join(self.names)}")
        values = [by_kind.get(name, general) for name in self.names]
        for name, value in zip(self.names, values, strict=True):
            if isinstance(value, bool | str) or not 0 <= value < float("inf"):
                raise UserError(f"{key}.{name}={value}: must be a number of at least 0")
        return torch.tensor(values, dtype=torch.float32, device=self.of.device)


class Tally:
    """Sums and counts over the steps of an update and over all processes, for means in the log."""

    def __init__(self, kinds: Kinds):
        self.kinds = kinds
        self.totals: dict[str, torch.Tensor] = {}

    def add(self, name: str, values: torch.Tensor, mask: torch.Tensor) -> None:
        """Values (b, T) or (b, 1) of the masked (b, T)."""
        values = values.detach().expand_as(mask)[mask].double()
        self._add(name, torch.stack([values.sum(), torch.tensor(float(len(values)), device=mask.device).double()]))

    def add_by_kind(self, name: str, values: torch.Tensor, kind: torch.Tensor, mask: torch.Tensor) -> None:
        """Values (b, T), of tokens of kinds (b, T)."""
        values, kind = values.detach()[mask].double(), kind[mask]
        totals = torch.zeros(2, len(self.kinds.names), dtype=torch.float64, device=mask.device)
        totals[0].index_add_(0, kind, values)
        totals[1].index_add_(0, kind, torch.ones_like(values))
        self._add(name, totals)

    def add_step(self, name: str, value: torch.Tensor, accelerator: Accelerator) -> None:
        """A sum over all processes, once a step."""
        self._add(name, torch.stack([value.detach().double(),
                                     torch.tensor(1 / accelerator.num_processes, device=value.device).double()]))

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """By name; of what was kept by kind also `<name>_<kind>`, for the kinds that occurred."""
        found = {}
        for name, total in self.totals.items():
            sums, counts = accelerator.reduce(total, "sum")
            found[name] = (sums.sum() / counts.sum()).item()
            if sums.dim():
                found |= {f"{name}_{kind}": (s / n).item()
                          for kind, s, n in zip(self.kinds.names, sums, counts, strict=True) if n}
        return {name: value for name, value in found.items() if not math.isnan(value)}  # some had nothing to count

    def _add(self, name: str, total: torch.Tensor) -> None:
        self.totals[name] = self.totals[name] + total if name in self.totals else total
