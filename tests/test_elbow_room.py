"""Atoms keep apart in the cells where it is hardest: as thin as the grammar allows, and full."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from policies.model import SHIPPED
from policies.prompts import PromptTable
from policies.representations import make
from policies.representations.base import Representation
from policies.representations.distances import too_close
from policies.representations.elbow_room import holds, least_side, rooms
from policies.representations.orbit_tables import ANY
from policies.representations.wyckoff import positions


def drawn_thin(representation: Representation, groups: tuple[int, ...], rows: int) -> tuple[np.ndarray, ...]:
    """Any legal token at random, but for lengths, of which every other is the least: metric (B, 3, 3), atoms (B, N, 3)
    and how many they are (B,)."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    table = replace(PromptTable.load(SHIPPED), properties={})  # which other ways of writing are not asked for
    of_groups = np.flatnonzero(np.isin(table.space_group, groups))
    conditions = [table.row(int(i), rng) for i in rng.choice(of_groups, rows)]
    state = representation.start(torch.tensor([representation.prompt(c) for c in conditions]), conditions)
    first, last = representation.first["length"], representation.first["degree"]
    for _ in range(representation.max_length):
        legal = state.legal()
        tokens = torch.multinomial(legal.float(), 1, generator=generator)[:, 0]
        least = legal.int().argmax(1)
        length = (least >= first) & (least < last) & (torch.rand(rows, generator=generator) < 0.5)
        tokens = torch.where(length, least, tokens)
        state.advance(tokens)
        if (tokens == representation.pad).all():
            break
    written = state.cells if representation.name == "orbits" else state.places
    return written.metric, written.atoms, written.filled


@pytest.mark.parametrize("name", ["orbits", "invariant"])
@pytest.mark.parametrize("groups", [(8, 36, 38, 42, 57, 58, 65, 69), (107, 123, 139, 140, 155, 160, 161, 166),
                                    (71, 74, 139, 187, 191, 194)])
def test_atoms_keep_apart_in_thin_cells(name, groups):
    metric, atoms, filled = drawn_thin(make(name, max_atoms=20), groups, 128)
    assert filled.min() >= 1 and filled.max() > 20
    n = np.arange(atoms.shape[1])
    both = (n < filled[:, None, None]) & (n[:, None] < filled[:, None, None]) & (n[:, None] != n)
    near = too_close(metric * 1.0001, atoms[:, :, None] - atoms[:, None])
    assert not (near & both).any()


def test_a_plane_shares_no_x_and_y_with_another():
    """P2_1/b 2_1/c 2_1/m: x and y of Rb keep apart from K on one of the planes z = 0 and 1/2, and so must z."""
    invariant = make("invariant", max_atoms=20)
    state = invariant.start(torch.tensor([invariant.prompt({"space_group": 58, "n_atoms": 6})]))
    names = ("K", "×2", "Rb", "×4", "<formula>", "hall275", "2Å", ".40Å", "2Å", ".90Å", "87Å", ".00Å", "K",
             "multiplicity2", "504/1008", "0/1008", "0/1008", "Rb", "multiplicity4", "27/1008", "614/1008")
    for name in names:
        token = invariant.vocabulary.index(name)
        assert state.legal()[0, token]
        state.advance(torch.tensor([token]))
    legal = {invariant.vocabulary[i] for i in state.legal()[0].nonzero()[:, 0].tolist()}
    assert legal == {"0/1008"}


def test_rooms_by_hand():
    # P4mm: lines along c at (0, 0) and (1/2, 1/2), one atom each, at (0, 1/2), two on two lines; planes; all of space.
    dof = [p.dof for p in positions(99)]
    assert dof == [1, 1, 1, 2, 2, 2, 3]
    found = rooms(20, 99, (6.0, 6.0, 3.25), 0)
    assert found[:3] == (3, 3, 3) and found[-1] == ANY and rooms(20, 99, (6.0, 6.0, 3.25), 1)[:3] == (2, 2, 2)
    assert all(a <= b for a, b in zip(rooms(20, 99, (2.5, 2.5, 3.0), 0), found, strict=True))


def test_the_least_side_is_the_first_that_is_enough():
    assert least_side(lambda sides: sides[2] >= 5.5, (3.0, 3.0, 2.4), (False, False, True)) == 5.5
    assert least_side(lambda sides: True, (3.0, 3.0, 2.4), (False, False, True)) == 2.4
    assert least_side(lambda sides: False, (3.0, 3.0, 2.4), (False, False, True)) == 2.4
    # 161: four atoms are two sites of two atoms each on the line (0, 0, z).
    assert not holds(20, 161, 4, (9.0, 9.0, 2.5)) and holds(20, 161, 4, (9.0, 9.0, 6.0))
