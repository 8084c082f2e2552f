"""The grammar of the `invariant` representation, for a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from policies.representations.asked import Asked, owing
from policies.representations.base import EOS, PAD, State
from policies.representations.distances import MIN_VOLUME
from policies.representations.invariant import MULTIPLICITIES
from policies.representations.invariant_formula import Formula
from policies.representations.invariant_occupations import (
    ANY,
    Counts,
    atoms_of,
    choices,
    clipped,
    fits,
    lasting,
    makeable,
    needed,
    points,
)
from policies.representations.invariant_places import Places, bools
from policies.representations.invariant_systems import FormulaOfSystem
from policies.representations.lattice import LatticeState, system_of
from policies.representations.patterns import Pattern
from policies.representations.quantiser import Q
from rlgen.types import Condition

if TYPE_CHECKING:
    from policies.representations.invariant import Invariant

FORMULA, COUNT, HALL, CELL, ELEMENT, MULTIPLICITY, COORDINATE, ENDED = range(8)


class InvariantState(State):
    """A formula as asked that the group asked for can have; a group that can have the formula; a cell that it fits
    into; sites in their order that make up the formula exactly, on points of their multiplicity, no two atoms too
    close, images included, and with the space group and no more symmetry.

    Where nothing keeps atoms apart or the group as it is, that demand is let go, so that every prefix can be completed.
    """

    def __init__(self, representation: Invariant, prompts: torch.Tensor, conditions: Sequence[Condition] | None,
                 systems: Sequence[int]):
        """systems: (B,) the crystal system asked for, 1 to 7 or 0."""
        self.rep = representation
        group, n, owed = (x.tolist() for x in representation.read_prompts(prompts))
        b = len(prompts)
        asked = [Asked.of(c) for c in conditions] if conditions else [None] * b
        owed = [owing(z, some) for z, some in zip(owed, asked, strict=True)]
        self.formulas = [FormulaOfSystem(representation.max_atoms, system, *row[1:]) if system and not row[0] else
                         Formula(representation.max_atoms, *row)
                         for system, row in zip(systems, zip(group, n, owed, asked, strict=True), strict=True)]
        self.phase = np.full(b, FORMULA)
        self.group = np.zeros(b, int)
        self.k = np.zeros(b, int)  # coordinates of the site written so far
        self.grid = np.zeros((b, 3), int)
        self.opened = np.zeros(b, bool)  # whether `places` knows of the next site
        self.places = Places(representation.max_atoms, b)
        nothing = torch.zeros(b, dtype=torch.long)
        self.lattice = LatticeState(representation.first, nothing, nothing.double())
        self.patterns: list[Pattern] = [()] * b
        #: Atoms still to be placed of each element, in order; the first is current. The most that its next site has.
        self.rest: list[Counts] = [()] * b
        self.cap = [ANY] * b
        #: As `lasting` takes them.
        self.room: list[Counts] = [()] * b
        self.lines: list[Counts] = [()] * b

    def keep(self, rows: int) -> None:
        for name in ("phase", "group", "k", "grid", "opened", "formulas", "patterns", "rest", "cap", "room", "lines"):
            setattr(self, name, getattr(self, name)[:rows])
        self.lattice.keep(rows)
        self.places.keep(rows)

    # What may come next

    def legal(self) -> torch.Tensor:
        mask = np.zeros((len(self.phase), len(self.rep.vocabulary)), bool)
        mask[:, PAD] = self.phase == ENDED
        for phase, allow in ((FORMULA, self._formula), (COUNT, self._counts), (HALL, self._groups),
                             (CELL, self._cells), (ELEMENT, self._elements),
                             (MULTIPLICITY, self._multiplicities), (COORDINATE, self._coordinates)):
            rows = (self.phase == phase).nonzero()[0]
            if len(rows):
                allow(mask, rows)
        return torch.from_numpy(mask)

    def _formula(self, mask: np.ndarray, rows: np.ndarray) -> None:
        good = np.stack([self.formulas[i].elements() for i in rows.tolist()])
        element = self.rep.first["element"]
        mask[rows, element + 1 : element + good.shape[1]] = good[:, 1:]
        mask[rows, self.rep.first["end_formula"]] = good[:, 0]

    def _counts(self, mask: np.ndarray, rows: np.ndarray) -> None:
        first = self.rep.first["count"] - 1
        for i in rows.tolist():
            mask[i, [first + c for c in self.formulas[i].numbers()]] = True

    def _groups(self, mask: np.ndarray, rows: np.ndarray) -> None:
        first = self.rep.first["hall"] - 1
        for i in rows.tolist():
            groups, counts = self.formulas[i].groups, self.formulas[i].counts
            mask[i, [first + g for g in groups if makeable(self.rep.max_atoms, g, counts)]] = True

    def _cells(self, mask: np.ndarray, rows: np.ndarray) -> None:
        self.lattice.legal(torch.from_numpy(mask), torch.from_numpy(rows))

    def _elements(self, mask: np.ndarray, rows: np.ndarray) -> None:
        """The first one that is not complete, or the end."""
        element = self.rep.first["element"]
        mask[rows, [element + self._element(i) if self.rest[i] else EOS for i in rows.tolist()]] = True

    def _element(self, i: int) -> int:
        formula = self.formulas[i].written
        return formula[len(formula) - len(self.rest[i])][0] if self.rest[i] else 0

    def _multiplicities(self, mask: np.ndarray, rows: np.ndarray) -> None:
        if not self.opened[rows].all():
            # What comes next is known one token before; rows that begin a site at the next one are done with these.
            begun = (self.phase == ELEMENT) & np.array([bool(rest) for rest in self.rest])
            self._open(np.flatnonzero(~self.opened & (begun | (self.phase == MULTIPLICITY))))
        open_, multiplicity = self.places.multiplicities(rows, self.group[rows])
        i, j = open_.nonzero()
        mask[rows[i], self.rep.first["multiplicity"] + np.searchsorted(MULTIPLICITIES, multiplicity[i, j])] = True

    def _coordinates(self, mask: np.ndarray, rows: np.ndarray) -> None:
        first = self.rep.first["coordinate"]
        mask[rows, first : first + Q] = self.places.values(rows, self.group[rows], self.grid[rows], self.k[rows])

    # What came

    def advance(self, tokens: torch.Tensor) -> None:
        came = tokens.numpy()
        before = np.where(came == PAD, ENDED, self.phase)  # padding moves nothing
        for phase, take in ((FORMULA, self._take_formula), (COUNT, self._take_count), (HALL, self._take_group),
                            (CELL, self._take_cell), (ELEMENT, self._take_element),
                            (MULTIPLICITY, self._take_multiplicity), (COORDINATE, self._take_coordinate)):
            rows = (before == phase).nonzero()[0]
            if len(rows):
                take(rows, came[rows])

    def _take_formula(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        end = tokens == self.rep.first["end_formula"]
        self.phase[rows] = np.where(end, HALL, COUNT)
        for i, z in zip(rows[~end].tolist(), (tokens[~end] - self.rep.first["element"]).tolist(), strict=True):
            self.formulas[i].z = z

    def _take_count(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        for i, count in zip(rows.tolist(), (tokens - self.rep.first["count"] + 1).tolist(), strict=True):
            self.formulas[i].take_number(count)
        self.phase[rows] = FORMULA

    def _take_group(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        self.group[rows] = tokens - self.rep.first["hall"] + 1
        groups, at = self.group[rows], torch.from_numpy(rows)
        for i in rows.tolist():
            self.rest[i] = tuple(c for _, c in self.formulas[i].written)
        atoms = np.array([sum(self.rest[i]) for i in rows.tolist()])
        volume = MIN_VOLUME * self.places.t.points[groups] * atoms
        systems = torch.tensor([system_of(g) for g in groups.tolist()])
        fresh = LatticeState(self.rep.first, systems, torch.from_numpy(volume))
        self.lattice.systems[at], self.lattice.volume[at] = fresh.systems, fresh.volume
        self.lattice.parameters[at] = fresh.parameters
        for i, group in zip(rows.tolist(), groups.tolist(), strict=True):
            self.lattice.fits[i] = partial(fits, self.rep.max_atoms, group, tuple(sorted(self.rest[i])))
        self.phase[rows] = CELL

    def _take_cell(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        done = rows[self.lattice.advance(torch.from_numpy(tokens), torch.from_numpy(rows)).numpy()]
        if len(done):
            self.places.metric[done] = self.lattice.metric().numpy()[done]
            self.phase[done] = ELEMENT

    def _take_element(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        self.phase[rows] = np.where(tokens == EOS, ENDED, MULTIPLICITY)

    def _open(self, rows: np.ndarray) -> None:
        """Find the positions that the next site of these rows may be on."""
        self.places.take_element(rows, np.array([self._element(i) for i in rows.tolist()]))
        self.opened[rows] = True
        group = self.group[rows]
        found = [choices(self.rep.max_atoms, g, self.patterns[i], self.rest[i], self.cap[i])
                 for i, g in zip(rows.tolist(), group.tolist(), strict=True)]
        wanted, proper = (bools([some[k] for some in found]) for k in range(2))
        at, dof = self.places.positions(group)
        # How much room lines have takes long to find out, and is only asked where others do not do: with all points
        # that may have to be occupied kept free, and without if that leaves nothing.
        room = self.places.room(rows, at, (dof >= 0) & (dof != 1))
        apart, fitting = self.places.fit_lines(rows, group, wanted & ((room > 0) | (dof > 0)))
        fitting &= self.places.fit_points(rows, group, apart)
        lasts = self._lasting(rows, room, apart & (dof == 1))
        tight = np.flatnonzero((apart & ~lasts).any(1))
        for kept in (True, False):
            if len(tight):
                some = rows[tight]
                if kept:
                    self.places.reserve(some, group[tight], self._points(some))
                free = self.places.room(some, at[tight], dof[tight] > 0)
                lasts[tight] = self._lasting(some, np.where(dof[tight] > 0, free, room[tight]))
                self.places.reserved[some] = 0
                tight = tight[~(apart & lasts)[tight].any(1)]
        self.places.open_for(rows, wanted, apart, lasts, proper, fitting)

    def _lasting(self, rows: np.ndarray, room: np.ndarray, lines: np.ndarray | None = None) -> np.ndarray:
        """(R, 27) positions after which there is room (R, 27) for all that is still to come, and note how much. lines:
        (R, 27) with room for this site."""
        found = []
        for r, (i, some) in enumerate(zip(rows.tolist(), room.tolist(), strict=True)):
            group = int(self.group[i])
            self.room[i] = clipped(self.rep.max_atoms, group, self.rest[i],
                                   some[: len(atoms_of(self.rep.max_atoms, group))])
            self.lines[i] = () if lines is None else tuple(np.flatnonzero(lines[r]).tolist())
            found.append(lasting(self.rep.max_atoms, group, self.rest[i], self.cap[i], self.room[i], self.lines[i]))
        return bools(found)

    def _points(self, rows: np.ndarray) -> np.ndarray:
        """(R, 27) the points that may have to be occupied later."""
        return bools([points(self.rep.max_atoms, int(self.group[i]), self.rest[i], self.room[i])
                      for i in rows.tolist()])

    def _take_multiplicity(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        place = (tokens - self.rep.first["multiplicity"]).clip(0, len(MULTIPLICITIES) - 1)
        self.places.narrow(rows, self.group[rows], np.array(MULTIPLICITIES)[place], self._needed)
        self.k[rows], self.opened[rows] = 0, False
        self.phase[rows] = COORDINATE

    def _needed(self, i: int, position: int) -> tuple[Counts, Counts]:
        known = self.rep.max_atoms, int(self.group[i]), self.rest[i]
        if position not in lasting(*known, self.cap[i], self.room[i], self.lines[i]):
            return (), ()
        return needed(*known, self.room[i], position)

    def _take_coordinate(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        self.grid[rows, self.k[rows]] = tokens - self.rep.first["coordinate"]
        self.k[rows] += 1
        whole = rows[self.k[rows] == 3]
        if len(whole):
            index = self.places.add(whole, self.group[whole], self.grid[whole])
            for i, position in zip(whole.tolist(), index.tolist(), strict=True):
                self._occupy(i, position)
            self.phase[whole] = ELEMENT

    def _occupy(self, i: int, position: int) -> None:
        label = max((label for _, label in self.patterns[i]), default=-1) + (self.cap[i] == ANY)
        self.patterns[i] = (*self.patterns[i], (position, label))
        m = atoms_of(self.rep.max_atoms, int(self.group[i]))[position][0]
        left, *others = self.rest[i]
        self.rest[i] = (left - m, *others) if left > m else tuple(others)
        self.cap[i] = m if left > m else ANY
