"""What matgl's potentials share: loading, evaluating a batch, and finding the way a checkpoint was trained.

matgl since 2.2.1 sums a layer's messages at a bond's first atom, checkpoints written before sum at the second; matgl
loads them without a word and gives wrong energies for every compound. Which way a checkpoint wants cannot be read from
its files, so known crystals decide upon loading (`settle_convention`).
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import torch
from pymatgen.core import Element

from rlgen.energies import weights
from rlgen.energies.base import Graph, GraphPotential, PotentialError
from rlgen.energies.known import TOLERANCE, KnownCrystal, largest_miss
from rlgen.types import UserError

log = logging.getLogger(__name__)

class MatglPotential(GraphPotential):
    """A `matgl` potential from a folder with its checkpoint; a subclass says how to choose the atom of the sums.

    checkpoint: its name, on the hub and as a folder. known: energies of known crystals as matgl < 2.2 gives them.
    instead: what to do without it.
    """

    checkpoint: ClassVar[str]
    known: ClassVar[tuple[KnownCrystal, ...]]
    instead: ClassVar[str] = "use energy=chgnet"

    def __init__(self, folder: Path):
        potential = weights.read(folder)
        self._model = potential.model
        self._take_scale(potential)
        self._type_of = torch.full((119,), -1, dtype=torch.long)
        for i, symbol in enumerate(self._model.element_types):
            self._type_of[Element(symbol).Z] = i
        self.elements = frozenset(self._model.element_types)
        self.cutoff = float(self._model.cutoff)
        self.settle_convention()

    @classmethod
    def load(cls) -> Self:
        """The potential from the user's folder, matgl's cache or its hub, on a GPU if this process sees one."""
        folder = weights.folder_of(cls.checkpoint)
        if folder is None:
            raise UserError(
                f"the weights of {cls.checkpoint} are not here and the hub does not answer: set RLGEN_MODELS to a "
                f"folder that holds {cls.checkpoint}/, or {cls.instead}"
            )
        return cls(folder).where_fastest()

    @abstractmethod
    def sum_at_second_atom(self, second: bool) -> None:
        """Choose at which atom of a bond the messages are summed: the second (old checkpoints) or as matgl does now."""

    def _take_scale(self, loaded: Any) -> None:
        """What makes energies of the network's output: mean, deviation, and each element's offset (eV per atom)."""
        self._mean, self._std = loaded.data_mean, loaded.data_std
        self._offsets = loaded.element_refs.property_offset.double()

    def settle_convention(self) -> None:
        """Keep the convention under which known crystals have their known energies; refuse if neither gives them."""
        misses: dict[bool, float] = {}
        for second in (True, False):
            self.sum_at_second_atom(second)
            misses[second] = largest_miss(self, self.known)
        best = min(misses, key=lambda second: misses[second])
        if misses[best] > TOLERANCE:
            raise PotentialError(
                f"{self.checkpoint} misses the known energies of {', '.join(k.formula for k in self.known)} by "
                f"{misses[best]:.3f} eV/atom, whichever atom its messages are summed at: these are other weights under "
                "its name, or this matgl does not evaluate them rightly"
            )
        self.sum_at_second_atom(best)
        log.debug("%s: messages summed at the %s atom", self.checkpoint, "second" if best else "first")

    def _energies(self, graph: Graph, positions: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
        batch = self._batch(graph, positions, shifts)
        energy = self._std * self._model(g=batch).reshape(-1) + self._mean
        return energy.double().index_add(0, graph.owner, self._offsets[batch.node_type])

    def _batch(self, graph: Graph, positions: torch.Tensor, shifts: torch.Tensor) -> SimpleNamespace:
        """The crystals as matgl's networks take them."""
        return SimpleNamespace(
            node_type=self._type_of[graph.numbers],
            pos=positions,
            edge_index=torch.stack([graph.source, graph.target]),
            pbc_offshift=shifts,
            batch=graph.owner,
            num_graphs=len(graph.counts),
        )
