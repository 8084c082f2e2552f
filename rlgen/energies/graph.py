"""Crystals as one graph, and the two ways to pair its bonds: those that share an atom, and each with its reverse."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Graph:
    """B crystals in one: numbers (N,), owner (N,) crystal of each atom, counts (B,), source/target (E,).

    image (E, 3) and distance (E,) Å stay NumPy arrays: they serve to build indices, not to derive by.
    """

    numbers: torch.Tensor
    owner: torch.Tensor
    counts: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    image: np.ndarray
    distance: np.ndarray


def pairs_at_source(source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ordered pairs of different edges that leave the same atom; `source` (E,) must be sorted. -> two (P,) of edges."""
    if len(source) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    degree = np.bincount(source)
    first_edge = np.concatenate([[0], np.cumsum(degree)[:-1]])
    repeats = degree[source]
    one = np.repeat(np.arange(len(source)), repeats)
    within = np.arange(len(one)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    two = np.repeat(first_edge[source], repeats) + within
    different = one != two
    return one[different], two[different]


def undirected(graph: Graph) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs each bond with its reverse. -> bond of each directed edge (E,), and one directed edge of each bond (U,)."""
    source, target, image = graph.source.cpu().numpy(), graph.target.cpu().numpy(), graph.image
    # The sign of an image is that of its first component that is not zero: with 3 digits of a base that is its sum's.
    base = 2 * int(np.abs(image).max(initial=0)) + 1
    code = (image[:, 0] * base + image[:, 1]) * base + image[:, 2]
    backwards = (source > target) | ((source == target) & (code < 0))
    atoms = np.minimum(source, target) * len(graph.numbers) + np.maximum(source, target)
    key = atoms * base**3 + np.where(backwards, -code, code)
    _, first, bond = np.unique(key, return_index=True, return_inverse=True)
    return torch.from_numpy(bond).to(graph.source.device), torch.from_numpy(first).to(graph.source.device)
