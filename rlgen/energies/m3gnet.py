"""M3GNet-MP-2021.2.8 (Chen & Ong 2022) through matgl, evaluated the way it was trained."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch

from rlgen.energies.known import KnownCrystal
from rlgen.energies.matgl_potential import MatglPotential
from rlgen.energies.weights import M3GNET


class M3GNetPotential(MatglPotential):
    """Energies on the scale of the Materials Project of February 2021, uncorrected."""

    name = "m3gnet"
    scale = "m3gnet-mp-2021.2.8"
    atoms_per_batch = 128
    checkpoint = M3GNET
    known = (KnownCrystal("NaCl", -3.3659), KnownCrystal("TiO2", -8.9367), KnownCrystal("MgO", -5.9510))

    def sum_at_second_atom(self, second: bool) -> None:
        for layer in self._model.graph_layers:
            convolution = layer.conv
            if second:
                convolution.node_update_ = MethodType(_node_update_at_second, convolution)
            else:
                vars(convolution).pop("node_update_", None)


def _node_update_at_second(
    self: Any,
    edge_index: torch.Tensor,
    edge_feat: torch.Tensor,
    node_feat: torch.Tensor,
    rbf: torch.Tensor,
    u_per_edge: torch.Tensor | None,
    num_nodes: int,
) -> torch.Tensor:
    """matgl's `node_update_` (eq. 5 of Chen & Ong 2022) with the sum at the bond's second atom."""
    parts = [node_feat[edge_index[0]], node_feat[edge_index[1]], edge_feat]
    if u_per_edge is not None:
        parts.append(u_per_edge)
    messages = self.node_update_func(torch.hstack(parts)) * self.node_weight_func(rbf)
    return messages.new_zeros(num_nodes, messages.shape[1]).index_add(0, edge_index[1], messages)
