"""TensorNet (Simeon & De Fabritiis, arXiv 2306.06482) trained on MatPES (Kaplan et al., arXiv 2503.04070).

The weights are loaded by matgl, the network is evaluated here. Its features are matrices, each the sum of a multiple of
the identity, a skew and a symmetric traceless part. matgl keeps the parts as three matrices, 27 numbers; in an
orthonormal basis they are 1 + 3 + 5 numbers, a Frobenius norm is a sum of squares, and bonds carry a third of the load.
Radial networks, which see only a bond's length, are evaluated once for both of its directions. A test holds the result
to matgl's own forward pass; `benchmarks/potentials.py` measures the gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from rlgen.energies.graph import Graph, undirected
from rlgen.energies.known import KnownCrystal
from rlgen.energies.matgl_potential import MatglPotential
from rlgen.energies.weights import TENSORNET

#: Of the 9 coordinates, which are of the identity (0), the skew (1) and the symmetric traceless part (2).
PART = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2])


def _basis() -> torch.Tensor:
    """The orthonormal basis (9, 9): coordinates of `PART` by entries of a flattened matrix."""
    pairs = ((1, 2), (2, 0), (0, 1))
    basis = torch.zeros(9, 3, 3)
    basis[0] = torch.eye(3) / math.sqrt(3)
    for k, (i, j) in enumerate(pairs):
        basis[1 + k, i, j], basis[1 + k, j, i] = -1 / math.sqrt(2), 1 / math.sqrt(2)
        basis[4 + k, i, j] = basis[4 + k, j, i] = 1 / math.sqrt(2)
    basis[7] = torch.diag(torch.tensor([1.0, -1.0, 0.0])) / math.sqrt(2)
    basis[8] = torch.diag(torch.tensor([-1.0, -1.0, 2.0])) / math.sqrt(6)
    return basis.reshape(9, 9)


BASIS = _basis()


class TensorNetPotential(MatglPotential):
    """Energies on the scale of MatPES 2025.1: PBE without U for any element, uncorrected."""

    name = "tensornet"
    scale = "tensornet-matpes-pbe-2025.1"
    atoms_per_batch = 96
    checkpoint = TENSORNET
    known = (KnownCrystal("NaCl", -3.3562), KnownCrystal("TiO2", -8.8210), KnownCrystal("MgO", -5.8647))

    _second = False

    def sum_at_second_atom(self, second: bool) -> None:
        # A bond's weight is made of its two atoms' embeddings, side by side. Each bond is there in both directions, so
        # that summing at the other atom is to read the two in the other order. The skew part of a message changes its
        # sign with the bond's direction, for all bonds at once: that is a mirror image, with the same energy.
        if second != self._second:
            weight = self._model.tensor_embedding.emb2.weight
            weight.copy_(weight.roll(weight.shape[1] // 2, dims=1))
            self._second = second

    def _energies(self, graph: Graph, positions: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
        model = self._model
        to_bond, one_way = undirected(graph)
        bonds = positions[graph.target] + shifts - positions[graph.source]
        lengths = bonds.norm(dim=1)
        radial = model.bond_expansion(lengths[one_way])
        fade = (0.5 * (torch.cos(torch.pi * lengths[one_way] / self.cutoff) + 1))[:, None]
        types = self._type_of[graph.numbers]
        features = _embed(model.tensor_embedding, types, graph, to_bond, bonds / lengths[:, None], radial, fade)
        for layer in model.layers:
            features = _interact(layer, features, graph, to_bond, radial, fade)
        squares = features.square().split([1, 3, 5], dim=1)
        invariants = model.out_norm(torch.cat([part.sum(1) for part in squares], dim=1))
        atomic = self._std * model.final_layer(model.linear(invariants)).reshape(-1).double() + self._offsets[types]
        return atomic.new_zeros(len(graph.counts)).index_add(0, graph.owner, atomic) + self._mean


def _embed(
    embedding: nn.Module,
    types: torch.Tensor,
    graph: Graph,
    to_bond: torch.Tensor,
    directions: torch.Tensor,
    radial: torch.Tensor,
    fade: torch.Tensor,
) -> torch.Tensor:
    """First features (N, 9, U): of elements, and bonds' directions (E, 3) and radial functions (bonds, R)."""
    net: Any = embedding
    x, y, z = directions.unbind(1)
    tensors = torch.stack(
        [
            torch.full_like(x, math.sqrt(3)),
            *(math.sqrt(2) * v for v in (x, y, z, y * z, z * x, x * y)),
            (x * x - y * y) / math.sqrt(2),
            (3 * z * z - 1) / math.sqrt(6),
        ],
        dim=1,
    )
    atoms = net.emb(types)
    first, second = net.emb2.weight.chunk(2, dim=1)
    pairs = linear(atoms, first, net.emb2.bias)[graph.source] + linear(atoms, second)[graph.target]
    parts = [net.distance_proj1(radial), net.distance_proj2(radial), net.distance_proj3(radial)]
    weights = (torch.stack(parts, dim=1) * fade[:, None])[to_bond] * pairs[:, None]
    features = _collect(weights[:, PART] * tensors[:, :, None], graph)
    scales = net.init_norm(features.square().sum(1))
    for layer in net.linears_scalar:
        scales = net.act(layer(scales))
    return _mix(net.linears_tensor, features) * scales.unflatten(1, (-1, 3)).transpose(1, 2)[:, PART]


def _interact(
    layer: nn.Module,
    features: torch.Tensor,
    graph: Graph,
    to_bond: torch.Tensor,
    radial: torch.Tensor,
    fade: torch.Tensor,
) -> torch.Tensor:
    """One interaction layer, for energies that do not change under mirror images (O(3))."""
    net: Any = layer
    for scalar in net.linears_scalar:
        radial = net.act(scalar(radial))
    weights = (radial * fade).unflatten(1, (-1, 3)).transpose(1, 2)[to_bond]
    features = features / (features.square().sum(1, keepdim=True) + 1)
    own = _mix(net.linears_tensor[:3], features)
    heard = _collect(weights[:, PART] * own[graph.target], graph)
    both = _product(heard, own) + _product(own, heard)
    change = _mix(net.linears_tensor[3:], both / (both.square().sum(1, keepdim=True) + 1))
    return features + change + _product(change, change)


def _collect(messages: torch.Tensor, graph: Graph) -> torch.Tensor:
    """Sums of messages (E, 9, U) at each bond's first atom -> (N, 9, U)."""
    return messages.new_zeros(len(graph.numbers), *messages.shape[1:]).index_add(0, graph.source, messages)


def _mix(layers: Sequence[nn.Module], features: torch.Tensor) -> torch.Tensor:
    """The three parts of features (N, 9, U), each through its own linear layer over the channels."""
    return torch.cat([layer(part) for layer, part in zip(layers, features.split([1, 3, 5], dim=1), strict=True)], dim=1)


def _product(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Products of matrices in coordinates (N, 9, U), channel by channel."""
    basis = BASIS.to(one.device)
    a, b = (torch.einsum("nku,kc->ncu", m, basis).unflatten(1, (3, 3)) for m in (one, two))
    return torch.einsum("ncu,kc->nku", (a[:, :, :, None] * b[:, None]).sum(2).flatten(1, 2), basis)
