"""The grammar of the `atoms` representation, for a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from policies.representations.asked import Asked
from policies.representations.base import EOS, PAD, State
from policies.representations.distances import MIN_VOLUME, TOUCHING, free_on_line, pair_limits, radii, shortest
from policies.representations.lattice import PRIMITIVE, LatticeState, free_tokens
from policies.representations.quantiser import Q
from policies.representations.species import Composer, Progress
from rlgen.types import Condition

if TYPE_CHECKING:
    from policies.representations.atoms import Atoms

LATTICE = free_tokens(0)
#: How atomic numbers go on from atom to atom.
ORDERS = {"falling": -1, "rising": 1, "xyz": 0, "random": 0}


class AtomsState(State):
    """What may come next in B sequences that are all at the same place, but for those that have begun their last
    lattice or ended.

    Beyond the kind of token that a place asks for: atoms come in order of their atomic numbers, where that is the
    order; the number of atoms asked for is exact, and no cell is too small for its atoms; the element asked for
    occurs; the lattice makes a cell; and what `asked.Asked` says. With the lattice first no atom is closer to another
    than fits their elements, or, where no z or no species is left for that, than the least distance. Where no z is left
    that is far enough from all others, every z is allowed: from there no crystal without atoms too close can be had.
    With the lattice last distances are not known while atoms are written.
    """

    def __init__(self, rep: Atoms, prompts: torch.Tensor, conditions: Sequence[Condition] | None):
        b, device = len(prompts), prompts.device
        self.rep, self.order = rep, ORDERS[rep.order]
        _, self.asked_n, self.owed = rep.read_prompts(prompts)
        self.species = torch.tensor(rep.species.z, device=device)  # (S,) atomic numbers
        self.most = torch.where(self.asked_n > 0, self.asked_n, rep.max_atoms)  # (B,) atoms
        self.allowed = (self.species > 0).expand(b, -1)  # (B, S) by the elements asked for
        self.composed: dict[int, tuple[Composer, Progress]] = {}  # rows whose species need looking ahead
        least = self.asked_n.clamp(min=1)
        if conditions is not None:
            self._ask(conditions, least)
        self.cell = LatticeState(rep.first, torch.zeros(b, dtype=torch.long, device=device),
                                 MIN_VOLUME * least.double(), PRIMITIVE)
        self.least = least
        self.written = 0  # tokens after the prompt
        self.n = 0  # atoms
        self.last = torch.zeros(b, dtype=torch.long, device=device)  # atomic number of the last atom, 0 for none
        self.ended = torch.zeros(b, dtype=torch.bool, device=device)
        self.closing = torch.zeros_like(self.ended)  # the lattice that comes last is begun
        self.points = torch.zeros(b, rep.max_atoms + LATTICE // 4 + 1, 3, device=device)  # fractional
        self.metric = torch.zeros(b, 3, 3, device=device)
        self.radius_of = torch.from_numpy(radii())
        self.radii = torch.zeros(b, self.points.shape[1], device=device)  # Å, of those atoms
        self.largest = torch.zeros(b, device=device)  # Å: the radius of an atom that fits between its own images

    def _ask(self, conditions: Sequence[Condition], least: torch.Tensor) -> None:
        """Take in what conditions ask beyond the prompt; `least` (B,) atoms are raised to what they need."""
        exact, owed = self.asked_n.tolist(), self.owed.tolist()
        for i, condition in enumerate(conditions):
            asked = Asked.of(condition)
            if asked is None:
                continue
            most = min(int(self.most[i]), asked.max_atoms or self.rep.max_atoms)
            self.most[i] = most
            if asked.elements is not None:
                among = torch.tensor(sorted(asked.elements), device=self.species.device)
                self.allowed = self.allowed.clone() if self.allowed.stride(0) == 0 else self.allowed
                self.allowed[i] = torch.isin(self.species, among)
            if asked.formula is not None or asked.neutral or len(asked.required) > 1:
                composer = Composer.of(self.rep.oxidation, asked, exact[i], self.order)
                progress, fewest = composer.start(most, owed[i])
                self.composed[i] = composer, progress
                least[i] = max(int(least[i]), fewest)

    def keep(self, rows: int) -> None:
        for name in ("asked_n", "owed", "most", "allowed", "least", "last", "ended", "closing", "points", "metric",
                     "radii", "largest"):
            setattr(self, name, getattr(self, name)[:rows])
        self.cell.keep(rows)
        self.composed = {i: row for i, row in self.composed.items() if i < rows}

    @property
    def _slot(self) -> int:
        """Which token of an atom comes next: 0 for the species, then x, y, z; -1 for one of a lattice that is first."""
        if self.rep.lattice_first:
            return (self.written - LATTICE) % 4 if self.written >= LATTICE else -1
        return self.written % 4

    # What may come next

    def legal(self) -> torch.Tensor:
        mask = torch.zeros(len(self.ended), len(self.rep.vocabulary), dtype=torch.bool, device=self.ended.device)
        slot, first = self._slot, self.rep.first["coordinate"]
        if slot == -1:
            self.cell.legal(mask, torch.arange(len(mask), device=mask.device))
        elif slot == 0:
            self._next_species(mask)
        elif slot == 3 and self.rep.lattice_first:
            mask[:, first : first + Q] = self._free()
        else:
            mask[:, first : first + Q] = True
        if not self.rep.lattice_first:
            self._close(mask)
        mask &= ~self.ended[:, None]
        mask[:, PAD] = self.ended
        return mask

    def _close(self, mask: torch.Tensor) -> None:
        """The lattice that comes last, and the end after it."""
        mask &= ~self.closing[:, None]
        complete = self.cell.written == LATTICE
        self.cell.legal(mask, (self.closing & ~complete).nonzero()[:, 0])
        mask[:, EOS] = complete

    def _next_species(self, mask: torch.Tensor) -> None:
        z, owed = self.species, self.owed[:, None]
        pending, last_one = owed > 0, (self.most - 1 == self.n)[:, None]
        allowed = self.allowed & (~(pending & last_one) | (z == owed))
        if self.order:
            allowed = allowed & (((z - self.last[:, None]) * self.order >= 0) | (self.n == 0))
            allowed = allowed & (~pending | ((owed - z) * self.order >= 0))
        full = self.most <= self.n
        allowed = allowed & ~full[:, None]
        ends = full | ((self.asked_n == 0) & (self.owed == 0) & (self.n > 0))
        self._compose(allowed, ends)
        if self.rep.lattice_first:
            small = allowed & (self.radius_of[z] <= self.largest[:, None])
            allowed = torch.where(small.any(1, keepdim=True), small, allowed)
        first = self.rep.first[self.rep.block]
        mask[:, first : first + len(z)] = allowed
        if self.rep.lattice_first:
            mask[:, EOS] = ends
        else:
            self.cell.legal(mask, (ends & ~self.closing & ~self.ended).nonzero()[:, 0])

    def _compose(self, allowed: torch.Tensor, ends: torch.Tensor) -> None:
        """Narrow (B, S) species and (B,) ends where a formula, several elements or a charge are asked for."""
        if not self.composed:
            return
        found = [composer.next(progress) for composer, progress in self.composed.values()]
        own = np.zeros((len(found), len(self.species)), dtype=bool)
        for i, (places, _) in enumerate(found):
            own[i, list(places)] = True
        rows = torch.tensor(list(self.composed), device=allowed.device)
        allowed[rows] = torch.from_numpy(own).to(allowed.device)
        ends[rows] = torch.tensor([end for _, end in found], device=allowed.device)

    def _free(self) -> torch.Tensor:
        """(B, Q) bool: the z that keep the atom as far from those before it as fits their elements; at the least
        distance where none does; all where none does that."""
        n, rows = self.n, torch.arange(len(self.points), device=self.points.device)
        limit = pair_limits(self.radii[:, :n].numpy(), self.radii[:, n : n + 1].numpy())
        free = self._free_by(rows, limit)
        tight = (~free.any(1) & ~self.ended).nonzero()[:, 0]
        if len(tight):
            free[tight] = self._free_by(tight, None)
        return free | ~free.any(1, keepdim=True)

    def _free_by(self, rows: torch.Tensor, limit: np.ndarray | None) -> torch.Tensor:
        """(R, Q) bool: the z that keep the atom `limit` (R, N) Å apart from those before it."""
        n = self.n
        start = self.points[rows, n : n + 1] - self.points[rows, :n]
        up = torch.zeros_like(start)
        up[..., 2] = 1
        real = ~self.ended[rows, None].expand(-1, n)
        return torch.from_numpy(free_on_line(self.metric[rows].numpy(), start.numpy(), up.numpy(), real.numpy(),
                                             limit=limit))

    # What came

    def advance(self, tokens: torch.Tensor) -> None:
        slot = self._slot
        self.ended = self.ended | (tokens == EOS)
        if slot == -1:
            self.cell.advance(tokens, torch.arange(len(tokens), device=tokens.device))
            if self.written == LATTICE - 1:
                self._enter_cell()
        else:
            if not self.rep.lattice_first:
                self._advance_last_cell(tokens, slot)
            if slot == 0:
                self._add(tokens - self.rep.first[self.rep.block])
            else:
                self.points[:, self.n, slot - 1] = (tokens - self.rep.first["coordinate"]) / Q
            self.n += slot == 3
        self.written += 1

    def _enter_cell(self) -> None:
        """Bind the number of atoms by the volume of the cell."""
        self.metric = self.cell.metric()
        self.largest = torch.from_numpy(shortest(self.metric.numpy())) / (2 * TOUCHING)
        room = (self.cell.cell_volume() / MIN_VOLUME).nan_to_num(0).long()
        self.most = torch.minimum(self.most, torch.maximum(room, self.least))
        for i, (composer, progress) in self.composed.items():
            self.composed[i] = composer, composer.limit(progress, int(self.most[i]))

    def _advance_last_cell(self, tokens: torch.Tensor, slot: int) -> None:
        if slot == 0:
            z = tokens - self.rep.first[self.rep.block]
            begin = ~self.closing & ~self.ended & ((z < 0) | (z >= len(self.species)))
            self.closing = self.closing | begin
            self.cell.volume = torch.where(begin, MIN_VOLUME * max(self.n, 1), self.cell.volume)
        rows = (self.closing & (self.cell.written < LATTICE)).nonzero()[:, 0]
        self.cell.advance(tokens[rows], rows)

    def _add(self, places: torch.Tensor) -> None:
        """The species (B,) at these places of their block came; those elsewhere are none."""
        known = (places >= 0) & (places < len(self.species))
        self.last = torch.where(known, self.species[places.clamp(0, len(self.species) - 1)], self.last)
        self.owed = self.owed * (self.owed != self.last)
        self.radii[:, self.n] = self.radius_of[self.last]
        if self.composed:
            of = torch.where(known, places, -1).tolist()
            for i, (composer, progress) in self.composed.items():
                if of[i] >= 0:
                    self.composed[i] = composer, composer.add(progress, of[i])
