"""The grammar of `text`, character by character, for many sequences at once, each at its own place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from policies.representations.asked import Asked
from policies.representations.base import State
from policies.representations.distances import TOUCHING, free_on_line, pair_limits, radii, shortest
from policies.representations.quantiser import MAX_ANGLE, MIN_ANGLE
from policies.representations.text_cell import alpha_bounds, gamma_bounds, least_length, metric_and_volume, volume_for
from policies.representations.text_content import Contents
from policies.representations.text_tables import ALPHA, BETA, ELEMENT, ENDED, GAMMA, NONE, Tables, X, Y, Z


class TextState(State):
    """Each row knows its field, what of it is written, and which values of it are allowed.

    A number is allowed digit by digit: a digit may follow if some allowed value starts so. The allowed values of a
    field are a range (`low` to `high`, in steps of its precision) and, for beta and the third coordinate, a table
    within it (`counts`, sums of it up to each value). Beta must leave some gamma. Elements fit between their own images
    where any does. Third coordinates keep atoms as far apart as fits their elements; where no value does, 0.5 Å; where
    no value does that, all are allowed.
    """

    def __init__(self, tables: Tables, exact: torch.Tensor, owed: torch.Tensor, asked: Sequence[Asked | None],
                 most: int):
        """exact, owed: (B,) number of atoms and element asked for, 0 for none. most: atoms in any crystal."""
        device, b = exact.device, len(exact)
        self.t, self.contents = tables, Contents(exact, owed, most, asked)
        self.volume = volume_for(self.contents.least())

        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> torch.Tensor:
            return torch.zeros(b, *shape, dtype=dtype, device=device)

        self.field, self.value = zeros(), zeros()
        self.whole, self.part = zeros(), zeros()  # digits before and after the point
        self.point = zeros(dtype=torch.bool)
        self.letters = zeros(2) + NONE
        self.low, self.high = zeros(), zeros()
        self.counts = zeros(tables.widest + 1, dtype=torch.int32)
        self.elements = zeros(len(tables.initials), dtype=torch.bool)  # what the next atom may be
        self.numbers = zeros(ENDED + 1, dtype=torch.double)  # by field: Å, degrees, fractions
        self.metric = zeros(3, 3, dtype=torch.float)
        self.frac = zeros(most, 3, dtype=torch.float)  # of the atoms that are complete
        self.radius_of = torch.from_numpy(radii())
        self.radii = zeros(most, dtype=torch.float)  # Å, of those atoms and the one that is being written
        self._enter(0, torch.arange(b, device=device))

    def keep(self, rows: int) -> None:
        self.contents.keep(rows)
        for name in ("volume", "field", "value", "whole", "part", "point", "letters", "low", "high", "counts",
                     "elements", "numbers", "metric", "frac", "radii"):
            setattr(self, name, getattr(self, name)[:rows])

    def legal(self) -> torch.Tensor:
        t = self.t
        mask = torch.zeros(len(self.field), t.size, dtype=torch.bool, device=self.field.device)
        digits, point, done = self._digits()
        mask[:, t.zero : t.zero + 10] = digits
        mask[:, t.point] = point
        mask.scatter_(1, t.separator[self.field][:, None], done[:, None])
        atom = (done & (self.field == Z)).nonzero()[:, 0]
        if len(atom):
            mask[atom, t.newline], mask[atom, t.eos] = self.contents.after_atom(atom)
        named = (self.field == ELEMENT).nonzero()[:, 0]
        if len(named):
            mask[named] = letters(t, self.elements[named], *self.letters[named].unbind(1))
        mask[:, t.pad] = self.field == ENDED
        return mask

    def _digits(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, 10) digits that may follow, (B,) whether a point may, (B,) whether the number may be complete."""
        t, after = self.t, self.point
        decimals, most = t.decimals[self.field], t.whole[self.field]
        # A digit before the point may be followed by 0, 1, 2 more of them: ranges of values of three sizes.
        extra = t.three
        place = torch.where(after, decimals - self.part - 1, decimals)[:, None]
        fits = torch.where(after[:, None], extra == 0, self.whole[:, None] + 1 + extra <= most[:, None]) & (place >= 0)
        unit = t.powers[(place + extra).clamp(min=0)][:, None]  # (B, 1, 3)
        first = (self.value[:, None] * 10 + t.ten)[:, :, None] * unit
        digits = (self._some(first, first + unit - 1) & fits[:, None]).any(2)
        digits[:, 0] &= after | (self.whole > 0) | (most == 1)  # "0.5", but no "05"
        unit = t.powers[decimals]
        first = self.value * unit
        whole = ~after & (self.whole > 0)
        whole &= self._some(first[:, None, None], (first + unit - 1)[:, None, None])[:, 0, 0]
        fractional = decimals > 0
        return digits, whole & fractional, torch.where(fractional, after & (self.part == decimals), whole)

    def _some(self, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Whether any value from first to last (B, I, J) is allowed."""
        first = torch.maximum(first, self.low[:, None, None])
        last = torch.minimum(last, self.high[:, None, None])
        end = self.counts.shape[1] - 1
        within = [self.counts.gather(1, at.clamp(0, end).flatten(1)).view(at.shape) for at in (first, last + 1)]
        return (first <= last) & (~self.t.tabled[self.field][:, None, None] | (within[1] > within[0]))

    def advance(self, tokens: torch.Tensor) -> None:
        t = self.t
        digit = t.digit[tokens]
        is_digit = digit >= 0
        self.value = torch.where(is_digit, self.value * 10 + digit, self.value)
        self.part += is_digit & self.point
        self.whole += is_digit & ~self.point
        self.point = self.point | (tokens == t.point)
        letter = t.letter[tokens]  # (B, 2)
        self.letters = torch.where(letter < NONE, letter, self.letters)
        rows = t.ends[tokens].nonzero()[:, 0]
        if len(rows):
            self._move(rows, tokens[rows])

    def _move(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        """These rows have completed their fields."""
        t, field = self.t, self.field[rows]
        self.numbers[rows, field] = self.value[rows].double() / t.powers[t.decimals[field]]
        named, closed, atom = (rows[field == which] for which in (ELEMENT, GAMMA, Z))
        if len(named):
            initial, second = self.letters[named].unbind(1)
            self.contents.take(named, t.symbols[initial, second])
            self.radii[named, self.contents.placed[named] - 1] = self.radius_of[t.symbols[initial, second]]
        if len(closed):
            self.metric[closed], volume = metric_and_volume(self.numbers[closed, :6])
            self.contents.make_room(closed, volume)
        if len(atom):
            self.frac[atom, self.contents.placed[atom] - 1] = self.numbers[atom, X : Z + 1].float()
        for state in (self.value, self.whole, self.part, self.point):
            state[rows] = 0
        self.letters[rows] = NONE
        after = torch.where(tokens == t.eos, ENDED, t.after[field])
        self.field[rows] = after
        for which in after.unique().tolist():
            self._enter(which, rows[after == which])

    def _enter(self, field: int, rows: torch.Tensor) -> None:
        """These rows begin a field: which values of it are allowed?"""
        t = self.t
        cell, volume, unit = self.numbers[rows, :6], self.volume[rows], t.units[field]
        if field < ALPHA:
            low = least_length(cell, field, volume, t.longest / unit) * unit
            self._range(rows, low - 1e-6, torch.full_like(low, t.longest))
        elif field == ALPHA:
            low, high = alpha_bounds(cell, volume)
            self._range(rows, low * unit, high * unit)
        elif field in (BETA, GAMMA):
            beta = t.angles.expand(len(rows), -1) if field == BETA else cell[:, BETA : BETA + 1]
            low, high = gamma_bounds(cell, cell[:, ALPHA : ALPHA + 1], beta, volume, field)
            if field == GAMMA:
                self._range(rows, low[:, 0] * unit, high[:, 0] * unit)
            else:
                some = (low * unit).ceil() <= (high * unit).floor()
                self._table(rows, some & (t.angles >= MIN_ANGLE) & (t.angles <= MAX_ANGLE))
        elif field == ELEMENT:
            self.elements[rows] = self.small(rows, self.contents.allowed(rows))
        elif field in (X, Y):
            self.low[rows], self.high[rows] = 0, unit - 1
        elif field == Z:
            own = self.numbers[rows, X : Z + 1].float()
            self._table(rows, self.apart(rows, own, self.frac[rows], self.radii[rows], self.contents.placed[rows] - 1))

    def _range(self, rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
        self.low[rows], self.high[rows] = low.ceil().long(), high.floor().long()

    def _table(self, rows: torch.Tensor, allowed: torch.Tensor) -> None:
        """Allow in these rows the values from 0 that (R, K) marks."""
        k = allowed.shape[1]
        self.low[rows], self.high[rows] = 0, k - 1
        self.counts[rows, 1 : k + 1] = allowed.cumsum(1, dtype=torch.int32)

    def small(self, rows: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Narrow elements (R, 119) to those that are not too close to their own images, if any is allowed."""
        largest = torch.from_numpy(shortest(self.metric[rows].numpy())) / (2 * TOUCHING)
        fit = allowed & (self.radius_of <= largest[:, None])
        return torch.where(fit.any(1, keepdim=True), fit, allowed)

    def apart(self, rows: torch.Tensor, own: torch.Tensor, others: torch.Tensor, radius: torch.Tensor,
              count: torch.Tensor) -> torch.Tensor:
        """(R, steps) third coordinates at which an atom is not too close to others; all where there is none.

        own: (R, 3), of which the third is not looked at. others: (R, M, 3), of which the first `count` (R,) are there.
        radius: (R, M) Å of these and of the atom, which follows them.
        """
        m = int(count.max())
        flat = torch.cat([own[:, :2], torch.zeros_like(own[:, :1])], 1)
        metric, start = self.metric[rows].numpy(), (flat[:, None] - others[:, :m]).numpy()
        along = np.zeros_like(start)
        along[..., 2] = 1
        real = np.arange(m) < count[:, None].numpy()
        limit = pair_limits(radius[:, :m].numpy(), radius.gather(1, count[:, None]).numpy())
        free = free_on_line(metric, start, along, real, self.t.units[Z], limit)
        tight = np.flatnonzero(~free.any(1))
        if len(tight):
            free[tight] = free_on_line(metric[tight], start[tight], along[tight], real[tight], self.t.units[Z])
        return torch.from_numpy(free | ~free.any(1, keepdims=True))


def letters(t: Tables, allowed: torch.Tensor, initial: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(R, V) what may follow the letters (R,) of a name, of elements of which some (R, 119) are allowed."""
    mask = torch.zeros(len(initial), t.size, dtype=torch.bool, device=initial.device)
    start = (initial == NONE)[:, None]
    mask[:, t.upper : t.upper + 26] = start & (allowed.float() @ t.initials > 0)
    after = allowed.gather(1, t.symbols[initial]) & ~start & (second == NONE)[:, None]
    mask[:, t.lower : t.lower + 26] = after[:, :26]
    mask[:, t.newline] = after[:, NONE] | (second != NONE)
    return mask
