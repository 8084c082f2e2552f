"""Which cells may still be written in `text`: bounds on each length and angle, in the order in which they are written.

Lengths come first, as published. A cell with right angles has the largest volume and heights that its lengths allow, so
lengths only need to make room for the atoms; and with alpha given, right angles for the other two are again the best.
Each stage is a little stricter than the next one, so that rounding never closes the way that a stage left open.
"""

from __future__ import annotations

import torch

from policies.representations.distances import MIN_HEIGHT, MIN_VOLUME
from policies.representations.lattice import FLAT_MARGIN
from policies.representations.quantiser import MAX_ANGLE, MIN_ANGLE, MIN_LENGTH
from policies.representations.text_tables import ALPHA, BETA, GAMMA

_STEP = 1e-6
#: What a limit is multiplied by while each parameter is chosen.
_STRICT = {ALPHA: 1 - _STEP, BETA: 1 - 2 * _STEP, GAMMA: 1 - 3 * _STEP}


def volume_for(atoms: torch.Tensor) -> torch.Tensor:
    """(B,) Å³ that cells for so many atoms (B,) must have, with a little more for rounding."""
    return atoms.double() * MIN_VOLUME * (1 + 10 * _STEP)


def least_length(cell: torch.Tensor, which: int, volume: torch.Tensor, longest: float) -> torch.Tensor:
    """(R,) Å that length number `which` must have, the earlier ones of cells (R, 6) given."""
    reachable = cell[:, :which].prod(1) * longest ** (2 - which)
    return (volume / reachable).clamp(min=max(MIN_LENGTH, MIN_HEIGHT))


def alpha_bounds(cell: torch.Tensor, volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest alpha (R,) in degrees of cells (R, 6) whose lengths are known."""
    strict = _STRICT[ALPHA]
    sine = torch.maximum(volume * strict / cell[:, :3].prod(1), MIN_HEIGHT * strict / cell[:, 1:3].amin(1))
    low = sine.clamp(max=1.0).asin().rad2deg()
    return low.clamp(min=MIN_ANGLE), (180 - low).clamp(max=MAX_ANGLE)


def gamma_bounds(cell: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor, volume: torch.Tensor, stage: int
                 ) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest gamma (R, K) in degrees of cells (R, 6) with alpha (R, 1) and beta (R, K); low > high: none.

    With x = cos gamma and V the volume of a cell of these angles and edges of 1, V² = (sin alpha sin beta)² -
    (x - cos alpha cos beta)². The volume and the heights over a and b bound V from below, which is an interval of x;
    the height over c asks for c V >= sin gamma times the limit, another one.
    """
    strict = _STRICT[stage]
    height = MIN_HEIGHT * strict
    a, b, c = cell[:, 0:1], cell[:, 1:2], cell[:, 2:3]
    alpha_r, beta_r = alpha.deg2rad(), beta.deg2rad()
    sines, product = alpha_r.sin() * beta_r.sin(), alpha_r.cos() * beta_r.cos()
    least = torch.maximum(volume[:, None] * strict / (a * b * c),
                          torch.maximum(height * alpha_r.sin() / a, height * beta_r.sin() / b))
    square = sines**2 - least**2
    half = square.clamp(min=0).sqrt()
    g = 1 - (height / c) ** 2
    rest = product**2 + g * (g - alpha_r.cos() ** 2 - beta_r.cos() ** 2)
    root = rest.clamp(min=0).sqrt()
    x_low = torch.maximum(product - half, (product - root) / g).clamp(-1, 1)
    x_high = torch.minimum(product + half, (product + root) / g).clamp(-1, 1)
    margin = FLAT_MARGIN * strict
    low = torch.maximum(x_high.acos().rad2deg(), (alpha - beta).abs() + margin).clamp(min=MIN_ANGLE)
    high = torch.minimum(x_low.acos().rad2deg(), torch.minimum(alpha + beta, 360 - alpha - beta) - margin)
    none = (square < 0) | (rest < 0) | (x_low > x_high)
    return low.masked_fill(none, torch.inf), high.clamp(max=MAX_ANGLE)


def metric_and_volume(cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Metric tensors (R, 3, 3) Å², float32, and volumes (R,) Å³ of cells (R, 6) in Å and degrees."""
    cos = cell[:, 3:].deg2rad().cos()
    one = torch.ones_like(cos[:, 0])
    cosines = torch.stack([one, cos[:, 2], cos[:, 1], cos[:, 2], one, cos[:, 0], cos[:, 1], cos[:, 0], one], 1)
    lengths = cell[:, :3]
    metric = cosines.view(-1, 3, 3) * lengths[:, :, None] * lengths[:, None]
    flatness = (1 - (cos**2).sum(1) + 2 * cos.prod(1)).clamp(min=0).sqrt()
    return metric.float(), lengths.prod(1) * flatness
