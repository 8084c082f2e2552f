"""MEGNet-MP-2018.6.1-Eform (Chen et al., Chem. Mater. 31, 3564 (2019)) through matgl, evaluated the way it was trained.

It has learnt formation energies of relaxed crystals only, and gives of one whose coordinates are a little off about
what that crystal would have relaxed: a guess, in milliseconds, of what a potential finds by relaxing.
"""

from __future__ import annotations

from typing import Any

import torch

from rlgen.energies.graph import Graph
from rlgen.energies.known import KnownCrystal
from rlgen.energies.matgl_potential import MatglPotential
from rlgen.energies.weights import MEGNET
from rlgen.predictors.megnet import sum_at_second_atom


class MEGNetPotential(MatglPotential):
    """Formation energies on the scale of the Materials Project of June 2018."""

    name = "megnet"
    scale = "megnet-mp-2018.6.1"
    atoms_per_batch = 256
    checkpoint = MEGNET
    instead = "do without the reward formation and energy=megnet"
    known = (KnownCrystal("NaCl", -2.0213), KnownCrystal("TiO2", -3.4684), KnownCrystal("MgO", -3.0647))

    def sum_at_second_atom(self, second: bool) -> None:
        sum_at_second_atom(self._model, second)

    def _take_scale(self, loaded: Any) -> None:
        self._transformer = loaded.transformer

    def _energies(self, graph: Graph, positions: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
        state = positions.new_zeros(len(graph.counts), 2)  # as matgl's own predictions have it
        output = self._model(self._batch(graph, positions, shifts), state).reshape(-1)
        return self._transformer.inverse_transform(output).double() * graph.counts
