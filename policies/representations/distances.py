"""Where on a line of grid points an atom may lie without coming too close to others, periodic images included."""

from __future__ import annotations

from itertools import product

import torch
from ase.data import covalent_radii

from policies.representations.base import MAX_Z
from policies.representations.quantiser import Q

#: Å: no two atoms are written closer (the validity limit of Xie et al., arXiv 2110.06197).
MIN_DISTANCE = 0.5
#: Where that leaves a choice, two atoms are not written closer than this part of the sum of their covalent radii.
TOUCHING = 0.6
#: Å: the least distance between the lattice planes of a primitive cell (MP-20's least is 1.95). From twice the limit
#: on, of two atoms only the pair of images that is nearest in every fractional coordinate can be too close.
MIN_HEIGHT = 1.9
#: Å³ per atom: the least a cell offers (MP-20's densest has 5.77).
MIN_VOLUME = 3.0


#: Choices of later coordinates that are looked at before a value is ruled out, and their steps: spread evenly.
TRIES, _STEPS = 16, (0.8192, 0.6711, 0.5498)
#: Å²: on planes of a larger area any number of sites has room.
SMALL_AREA = 16.0
#: The part of a share found by so many tries that is certain to be there.
_SURE = 0.8
#: What `free_on_line` leaves free at just the limit is not too close because of another order of adding up.
_ROUNDING = 1 - 5e-5


def tries(attempt: int, device: torch.device) -> torch.Tensor:
    """(3,) fractions of a cell, on the grid: the choice of later coordinates that an attempt (from 1) looks at."""
    return torch.tensor([int(attempt * step % 1 * Q) / Q for step in _STEPS], device=device)


def heights(metric: torch.Tensor) -> torch.Tensor:
    """(B, 3) Å between the lattice planes of cells with metric tensors (B, 3, 3)."""
    return torch.linalg.inv(metric).diagonal(dim1=1, dim2=2).rsqrt()


def too_close(metric: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    """(B, ...) bool: fractional differences (B, ..., 3) under the limit in cells with metric tensors (B, 3, 3)."""
    d = difference - difference.round()
    g = metric.view(len(metric), *[1] * (d.ndim - 2), 3, 3)
    return _product(d, g, d) < MIN_DISTANCE**2 * _ROUNDING


def _product(x: torch.Tensor, metric: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x G y (...) of vectors (..., 3) and metric tensors (..., 3, 3).

    Element by element: a matrix product may round differently in a batch of another shape, and what was legal while
    sampling must be legal when log-probabilities are computed again.
    """
    return (x.unsqueeze(-1) * metric * y.unsqueeze(-2)).sum((-2, -1))


def radii(device: torch.device) -> torch.Tensor:
    """(MAX_Z + 1,) Å: covalent radii (Cordero et al., Dalton Trans. 2832 (2008)); 0 for no element."""
    return torch.as_tensor([0.0, *covalent_radii[1 : MAX_Z + 1].tolist()], device=device)


def pair_limits(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Å: how far apart atoms with covalent radii `one` and `two` (Å) are written where that leaves a choice."""
    return (TOUCHING * (one + two)).clamp(min=MIN_DISTANCE)


def nearest(metric: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    """(B, M) Å: from fractional differences (B, M, 3) to the nearest lattice vector, cells as `free_on_line`'s."""
    d = difference - difference.round()
    images = torch.tensor(list(product((-1.0, 0.0, 1.0), repeat=3)), device=d.device)
    along = (d[:, :, None] * metric[:, None]).sum(-1)  # (B, M, 3)
    length = _product(images, metric[:, None], images)[:, None] - 2 * (along[:, :, None] * images).sum(-1)
    return ((along * d).sum(-1) + length.amin(2)).clamp(min=0).sqrt()


def shortest(metric: torch.Tensor) -> torch.Tensor:
    """(B,) Å: the shortest lattice vector of cells with metric tensors (B, 3, 3), of those with entries of -1 to 1."""
    images = torch.tensor([v for v in product((-1.0, 0.0, 1.0), repeat=3) if any(v)], device=metric.device)
    return _product(images, metric[:, None], images).amin(1).clamp(min=0).sqrt()


def free_on_line(metric: torch.Tensor, start: torch.Tensor, direction: torch.Tensor, real: torch.Tensor,
                 steps: int = Q, limit: torch.Tensor | None = None) -> torch.Tensor:
    """Grid values u = k/steps at which none of M differences start + direction * u is too close to a lattice vector.

    metric: (B, 3, 3) Å². start: (B, M, 3). direction: (B, M, 3) whole numbers. real: (B, M) bool, the differences
    that count. limit: (B, M) Å, instead of `MIN_DISTANCE`. Returns (B, steps) bool. |start + direction u - n|² is a
    parabola in u for every lattice vector n, so what is forbidden is an interval of u; intervals are added up by
    their ends.
    """
    b, m, _ = start.shape
    allowed = torch.ones(b, steps, dtype=torch.bool, device=start.device)
    if not m or not b:
        return allowed
    row, pair = real.nonzero(as_tuple=True)
    d, r = start[row, pair], direction[row, pair]  # (L, 3)
    d = d - d.round()
    least = torch.full_like(d[:, 0], MIN_DISTANCE) if limit is None else limit[row, pair]
    # The planes of lattice points that the line comes nearer to than the limit, axis by axis, and where they meet.
    margin = least[:, None] / heights(metric)[row]
    first = (torch.minimum(d, d + r) - margin).floor() + 1
    number = ((torch.maximum(d, d + r) + margin).ceil() - first).clamp(min=0).long()
    many = number.prod(1)
    line = torch.arange(len(row), device=row.device).repeat_interleave(many)
    if not len(line):
        return allowed
    place = torch.arange(len(line), device=row.device) - (many.cumsum(0) - many)[line]
    x, y, _ = number[line].unbind(1)
    row, r = row[line], r[line]
    d = d[line] - first[line] - torch.stack([place % x, place // x % y, place // (x * y)], 1)
    g = metric[row]
    turned = (r.unsqueeze(-1) * g).sum(-2)
    a, half_b, c = (turned * r).sum(-1), (turned * d).sum(-1), _product(d, g, d) - least[line] ** 2
    root = half_b**2 - a * c
    hit = (root > 0) & (a > 0)
    fixed = (a == 0) & (c < 0)  # a difference that does not depend on u
    allowed[row[fixed]] = False
    row, a, half_b, root = row[hit], a[hit], half_b[hit], root[hit].sqrt()
    first = ((-half_b - root) / a * steps).floor().long() + 1
    last = ((-half_b + root) / a * steps).ceil().long() - 1
    inside = (last >= first) & (last >= 0) & (first < steps)
    row, first, last = row[inside], first[inside].clamp(min=0), last[inside].clamp(max=steps - 1)
    ends = torch.zeros(b, steps + 1, dtype=torch.int32, device=start.device)
    ends.index_put_((row, first), torch.ones_like(row, dtype=torch.int32), accumulate=True)
    ends.index_put_((row, last + 1), -torch.ones_like(row, dtype=torch.int32), accumulate=True)
    return allowed & (ends.cumsum(1)[:, :steps] == 0)


def sites_on_plane(share: torch.Tensor, area: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """(N,) how many sites, of so many atoms (N,) each, find room on planes of which a share (N,) is free, wherever each
    is put: an atom takes at most a disc of the limit's radius from those that follow. area: (N,) Å²."""
    taken = torch.pi * MIN_DISTANCE**2 * atoms
    return torch.where(share > 0, 1 + (_SURE * share * area / taken).long(), 0)


def area(plane: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    """(N,) Å² of what two parameters from 0 to 1 span: planes (N, 3, 2) in cells with metric tensors (N, 3, 3)."""
    a, b = plane.unbind(2)
    return (_product(a, metric, a) * _product(b, metric, b) - _product(a, metric, b) ** 2).clamp(min=0).sqrt()


def sites_on_line(free: torch.Tensor, line: torch.Tensor, metric: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """(N,) how many sites, of so many atoms (N,) each, are certain to find room on lines of which `free` (N,) of Q grid
    values are free, wherever each is put: an atom takes at most twice the limit away from those that follow.

    line: (N, 3) what a parameter from 0 to 1 runs through. metric: (N, 3, 3).
    """
    length = _product(line, metric, line).sqrt()
    taken = ((2 * MIN_DISTANCE * Q / length).long() + 1) * atoms
    return torch.where(free > 0, 1 + (free - 1).clamp(min=0) // taken, 0)
