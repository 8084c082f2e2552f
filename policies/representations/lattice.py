"""How the free parameters of a cell are written, and which values make a cell that atoms fit into."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from policies.representations.distances import MIN_HEIGHT
from policies.representations.elbow_room import Fits, least_side
from policies.representations.quantiser import (
    ANGLE_STEPS,
    LENGTH_STEPS,
    MAX_ANGLE,
    MAX_LENGTH,
    MIN_ANGLE,
    MIN_LENGTH,
    quantise_lattice,
)
from rlgen.types import CrystalError

#: The tokens: two for a length, two for an angle.
BLOCKS = {
    "length": [f"{i}Å" for i in range(MIN_LENGTH, MAX_LENGTH)],
    "hundredth": [f".{i:02d}Å" for i in range(LENGTH_STEPS)],
    "degree": [f"{i}°" for i in range(MIN_ANGLE, MAX_ANGLE + 1)],
    "twentieth": [f"+{i}/20°" for i in range(ANGLE_STEPS)],
}
A, B, C, ALPHA, BETA, GAMMA = range(6)
#: The free parameters of each crystal system, angles first: once they are known, every bound is one of lengths.
#: Rhombohedral groups are written in hexagonal axes.
SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "hexagonal", "cubic")
FREE = ((ALPHA, BETA, GAMMA, A, B, C), (BETA, A, B, C), (A, B, C), (A, C), (A, C), (A,))
#: Which parameter each of a, b, c repeats.
EQUAL = ((A, B, C), (A, B, C), (A, B, C), (A, A, C), (A, A, C), (A, A, A))
#: Whether it is an angle, its two blocks, the first whole number, steps of the second.
KINDS = ((False, "length", "hundredth", MIN_LENGTH, LENGTH_STEPS),
         (True, "degree", "twentieth", MIN_ANGLE, ANGLE_STEPS))
#: Å: the least distance between the lattice planes along a, b and c, by crystal system, of primitive and of
#: conventional cells. In thinner conventional ones the atoms that symmetry repeats find no place.
PRIMITIVE = ((MIN_HEIGHT,) * 3,) * len(SYSTEMS)
CONVENTIONAL = tuple((2.1, 2.1, 2.4) if system == "hexagonal" else (2.4,) * 3 for system in SYSTEMS)
#: Angles must leave this much room (degrees) to the ones that make a flat cell.
FLAT_MARGIN = 2.0
_LONGEST = MAX_LENGTH - 1 / LENGTH_STEPS
#: Volumes are compared with a little room for the rounding of floating point.
_SLACK = 1 + 1e-5


def system_of(group: int) -> int:
    """The place in `SYSTEMS` of a space group's crystal system; 0 (triclinic) for none."""
    return int(np.searchsorted([2, 15, 74, 142, 194], group)) if group else 0


def free_tokens(system: int) -> int:
    """How many tokens write a cell of this system."""
    return 2 * len(FREE[system])


def write(parameters: np.ndarray, system: int, first: dict[str, int]) -> list[int]:
    """The tokens of a cell (a, b, c in Å, angles in degrees). Raises CrystalError off the grid's range."""
    k = quantise_lattice(parameters)
    ids = []
    for i in FREE[system]:
        _, whole, part, lowest, steps = KINDS[i >= 3]
        ids += [first[whole] + int(k[i]) // steps - lowest, first[part] + int(k[i]) % steps]
    return ids


def read(ids: Sequence[int], system: int, representation) -> np.ndarray:
    """(6,) Å and degrees of what `write` wrote. Raises CrystalError for tokens out of place and for flat cells."""
    parameters = np.array([0.0, 0.0, 0.0, 90.0, 90.0, 120.0 if SYSTEMS[system] == "hexagonal" else 90.0])
    for i, whole, part in zip(FREE[system], ids[::2], ids[1::2], strict=True):
        _, block, fraction, lowest, steps = KINDS[i >= 3]
        parameters[i] = lowest + representation.read(whole, block) + representation.read(part, fraction) / steps
    parameters[:3] = parameters[list(EQUAL[system])]
    alpha, beta, gamma = parameters[3:]
    if not abs(alpha - beta) < gamma < min(alpha + beta, 360 - alpha - beta) or max(alpha, beta, gamma) > MAX_ANGLE:
        raise CrystalError("geometry", f"no cell has the angles {alpha}, {beta}, {gamma}")
    return parameters


class LatticeState:
    """The cells that B sequences are writing, each in its own system.

    parameters: (B, 6), NaN where not yet written. volume: (B,) Å³ that the cell must at least have. heights: the least
    distances between its planes.
    """

    def __init__(self, first: dict[str, int], systems: torch.Tensor, volume: torch.Tensor,
                 heights: tuple[tuple[float, ...], ...] = CONVENTIONAL):
        device = systems.device
        self.heights = torch.tensor(heights, dtype=torch.float64, device=device)
        self.first, self.systems, self.volume = first, systems, volume
        self.parameters = torch.full((len(systems), 6), float("nan"), dtype=torch.float64, device=device)
        right = torch.tensor([[ALPHA not in free, BETA not in free, GAMMA not in free] for free in FREE], device=device)
        fixed = torch.full((len(FREE), 3), 90.0, dtype=torch.float64, device=device)
        fixed[SYSTEMS.index("hexagonal"), 2] = 120.0
        self.parameters[:, 3:] = torch.where(right[systems], fixed[systems], torch.nan)
        self.order = torch.full((len(FREE), 7), -1, device=device)
        for i, free in enumerate(FREE):
            self.order[i, : len(free)] = torch.tensor(free, device=device)
        self.equal = torch.tensor(EQUAL, device=device)
        self.written = torch.zeros(len(systems), dtype=torch.long, device=device)  # tokens so far
        #: By row whether atoms certainly have room in a cell; nothing where that is not known.
        self.fits: list[Fits | None] = [None] * len(systems)

    def keep(self, rows: int) -> None:
        self.systems, self.volume, self.written = self.systems[:rows], self.volume[:rows], self.written[:rows]
        self.parameters, self.fits = self.parameters[:rows], self.fits[:rows]

    @property
    def lengths_and_angles(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Lengths (B, 3) Å and angles (B, 3) radians of complete cells."""
        return self.parameters[:, :3], self.parameters[:, 3:].deg2rad()

    def metric(self) -> torch.Tensor:
        """(B, 3, 3) metric tensors in Å², float32; the identity where a cell is not complete."""
        lengths, angles = self.lengths_and_angles
        cos = angles.cos()
        one = torch.ones_like(cos[:, 0])
        c = torch.stack([one, cos[:, 2], cos[:, 1], cos[:, 2], one, cos[:, 0], cos[:, 1], cos[:, 0], one], 1)
        metric = c.view(-1, 3, 3) * lengths[:, :, None] * lengths[:, None]
        unknown = metric.isnan().any(2).any(1)[:, None, None]
        return torch.where(unknown, torch.eye(3, dtype=metric.dtype, device=metric.device), metric).float()

    def cell_volume(self) -> torch.Tensor:
        """(B,) Å³, NaN where a cell is not complete."""
        lengths, angles = self.lengths_and_angles
        return lengths.prod(1) * _flatness(angles)

    def legal(self, mask: torch.Tensor, rows: torch.Tensor) -> None:
        """Allow in `mask` (B, V) the next tokens of the cells of these rows (indices)."""
        parameter = self.order[self.systems[rows], self.written[rows] // 2]
        second = self.written[rows] % 2 == 1
        low, high = self._bounds(rows, parameter)
        for is_angle, whole, fraction, lowest, steps in KINDS:
            for is_second, block in ((False, whole), (True, fraction)):
                chosen = ((parameter >= 3) == is_angle) & (second == is_second)
                if not chosen.any():
                    continue
                at = rows[chosen]
                if is_second:
                    k = self.parameters[at, parameter[chosen]].long()[:, None] * steps
                    k = k + torch.arange(steps, device=mask.device)
                    good = (k >= low[chosen, None]) & (k <= high[chosen, None])
                else:
                    k = (lowest + torch.arange(len(BLOCKS[whole]), device=mask.device)) * steps
                    good = (k + steps - 1 >= low[chosen, None]) & (k <= high[chosen, None])
                mask[at, self.first[block] : self.first[block] + good.shape[1]] = good

    def advance(self, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Take the next tokens (R,) of the cells of these rows (indices); (R,) bool which of them are complete."""
        parameter = self.order[self.systems[rows], self.written[rows] // 2]
        second = self.written[rows] % 2 == 1
        angle = parameter >= 3
        for is_angle, whole, fraction, lowest, steps in KINDS:
            for is_second, block in ((False, whole), (True, fraction)):
                chosen = (angle == is_angle) & (second == is_second)
                at, which = rows[chosen], parameter[chosen]
                value = (tokens[chosen] - self.first[block]).double()
                if is_second:
                    self.parameters[at, which] += value / steps
                else:
                    self.parameters[at, which] = value + lowest
        self.written[rows] += 1
        complete = self.complete(rows)
        done = rows[complete]
        self.parameters[done, :3] = self.parameters[done].gather(1, self.equal[self.systems[done]])
        return complete

    def complete(self, rows: torch.Tensor) -> torch.Tensor:
        """(R,) bool: which of these rows (indices) have written all of their cell."""
        return self.written[rows] == 2 * (self.order[self.systems[rows]] >= 0).sum(1)

    def _bounds(self, rows: torch.Tensor, which: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest grid value (R,) of the parameter that each row writes next, in steps of the grid."""
        angles = self.parameters[rows, 3:]
        alpha, beta = angles[:, 0], angles[:, 1]
        flat = (which == GAMMA).double()  # gamma alone is bound by the other two
        low = ((alpha - beta).abs() + FLAT_MARGIN) * flat
        high = torch.where(which == GAMMA, torch.minimum(alpha + beta, 360 - alpha - beta) - FLAT_MARGIN, torch.inf)
        angle_low = (low * ANGLE_STEPS).nan_to_num(0).floor() + 1
        angle_high = (high * ANGLE_STEPS).clamp(max=MAX_ANGLE * ANGLE_STEPS + 1).nan_to_num(0).ceil() - 1

        radians = angles.deg2rad()
        volume = _flatness(radians)
        copies = self.equal[self.systems[rows]]  # (R, 3): which parameter each edge repeats
        edges = self.parameters[rows].gather(1, copies)
        mine = copies == which[:, None]
        others = torch.where(mine, 1.0, torch.where(edges.isnan(), _LONGEST, edges)).prod(1)
        roomy = (self.volume[rows] * _SLACK / (others * volume)) ** (1 / mine.sum(1).clamp(min=1))
        height = self.heights[self.systems[rows], which % 3]
        thick = height * radians.sin().gather(1, (which % 3)[:, None])[:, 0] / volume
        length_low = torch.maximum(roomy, thick).clamp(max=_LONGEST)
        is_angle = which >= 3
        if not is_angle.all():
            tall = volume[:, None] / radians.sin()  # height by length
            known = torch.where(edges.isnan(), _LONGEST, edges)
            sides = torch.where(mine, length_low[:, None], known) * tall
            length_low = torch.where(is_angle, length_low, self._with_room(rows, sides, mine, tall))
        length_low = (length_low.clamp(max=_LONGEST) * LENGTH_STEPS - 1e-6).ceil()
        return (torch.where(is_angle, angle_low, length_low),
                torch.where(is_angle, angle_high, float(MAX_LENGTH * LENGTH_STEPS)))


    def _with_room(self, rows: torch.Tensor, sides: torch.Tensor, mine: torch.Tensor, tall: torch.Tensor
                   ) -> torch.Tensor:
        """(R,) Å of the edges that are `mine` (R, 3), at least what makes their `sides` (R, 3), with room for atoms.

        tall: (R, 3) sides by edges.
        """
        found = torch.where(mine, sides / tall, 0).amax(1)
        for r, (i, some, own) in enumerate(zip(rows.tolist(), sides.tolist(), mine.tolist(), strict=True)):
            fits = self.fits[i]
            if fits is not None and any(own):
                side = least_side(fits, some, own)
                least = [side / t for t, here in zip(tall[r].tolist(), own, strict=True) if here]
                found[r] = max(float(found[r]), *least)
        return found


def _flatness(angles: torch.Tensor) -> torch.Tensor:
    """(B,) volume of a cell with these angles (B, 3; radians) and edges of 1."""
    cos = angles.cos()
    return (1 - (cos**2).sum(1) + 2 * cos.prod(1)).clamp(min=0).sqrt()
