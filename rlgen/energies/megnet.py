"""MEGNet-MP-2018.6.1-Eform (Chen et al., Chem. Mater. 31, 3564 (2019)) through matgl, evaluated the way it was trained.

It has learnt formation energies of relaxed crystals only, and gives of one whose coordinates are a little off about
what that crystal would have relaxed: a guess, in milliseconds, of what a potential finds by relaxing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file

from rlgen.energies import TAUGHT
from rlgen.energies.base import Cell, Edges
from rlgen.energies.graph import Graph
from rlgen.energies.known import KnownCrystal
from rlgen.energies.matgl_potential import MatglPotential
from rlgen.energies.weights import MEGNET
from rlgen.predictors.megnet import sum_at_second_atom
from rlgen.types import UserError


class MEGNetPotential(MatglPotential):
    """Formation energies on the scale of the Materials Project of June 2018."""

    name = "megnet"
    scale = "megnet-mp-2018.6.1"
    atoms_per_batch = 256
    checkpoint = MEGNET
    instead = "do without the reward formation and energy=megnet"
    known = (KnownCrystal("NaCl", -2.0213), KnownCrystal("TiO2", -3.4684), KnownCrystal("MgO", -3.0647))

    @classmethod
    def taught(cls, folder: Path) -> Self:
        """The published weights, checked, and then those of a folder of `rlgen.foretell` in their place."""
        potential = cls.load()
        try:
            potential._model.load_state_dict(load_file(folder / TAUGHT))
        except Exception as error:  # whatever a broken file makes of safetensors and torch
            raise UserError(f"{folder / TAUGHT}: cannot be read ({type(error).__name__}: {str(error)[:200]}); write it "
                            "again with rlgen.foretell") from error
        return potential

    def save(self, folder: Path) -> None:
        """Writes what `taught` reads."""
        save_file({name: value.contiguous() for name, value in self._model.state_dict().items()}, folder / TAUGHT)

    @property
    def network(self) -> torch.nn.Module:
        """What there is to teach."""
        return self._model

    def per_atom(self, batch: Sequence[tuple[Cell, Edges]]) -> torch.Tensor:
        """Energies (B,) eV/atom, differentiable in the network's weights."""
        graph, positions, shifts = self.graph(batch)
        return self._energies(graph, positions, shifts) / graph.counts

    def sum_at_second_atom(self, second: bool) -> None:
        sum_at_second_atom(self._model, second)

    def _take_scale(self, loaded: Any) -> None:
        self._transformer = loaded.transformer

    def _energies(self, graph: Graph, positions: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
        state = positions.new_zeros(len(graph.counts), 2)  # as matgl's own predictions have it
        output = self._model(self._batch(graph, positions, shifts), state).reshape(-1)
        return self._transformer.inverse_transform(output).double() * graph.counts
