"""The invariant representation: one string for all descriptions, and samples with just the formula and group asked."""

from __future__ import annotations

import moyopy
import numpy as np
import pytest
import spglib
import torch
from conftest import CRYSTALS
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Element, Lattice, Structure

from policies.model import CrystalPolicy
from policies.representations import make
from policies.representations.asked import Charges
from policies.representations.invariant import HALL_NUMBERS, MULTIPLICITIES, ranks
from policies.representations.invariant_tables import members, settle
from policies.representations.orbit_tables import tables
from policies.representations.quantiser import Q
from policies.representations.wyckoff import operations, positions
from policies.sampler import decode, sample
from rewards.condition import COMPOSITION
from rlgen.types import CrystalError, UserError

INVARIANT = make("invariant", max_atoms=20)
SYMPREC = 0.01  # Å


def tokens(*names: str) -> list[int]:
    return [INVARIANT.vocabulary.index(name) for name in names]


ROCK_SALT = ("Na", "×1", "Cl", "×1", "<formula>", "hall523", "5Å", ".64Å",
             "Na", "multiplicity4", *["0/1008"] * 3, "Cl", "multiplicity4", "0/1008", "0/1008", "504/1008", "<eos>")


def group_of(structure: Structure) -> int:
    found = spglib.get_symmetry_dataset((structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers),
                                        symprec=SYMPREC)
    return found.number if found else 0


def random_policy(seed: int = 0) -> CrystalPolicy:
    torch.manual_seed(seed)
    return CrystalPolicy.create(INVARIANT, hidden_size=32, layers=2, heads=2, intermediate_size=64).eval()


def drawn(conditions: list[dict], seed: int = 0):
    """Rollout and crystals of a random policy; none may fail to decode."""
    policy = random_policy(seed)
    rollout = sample(policy, conditions, torch.Generator().manual_seed(seed))
    found = decode(policy, rollout)
    assert not [x for x in found if isinstance(x, CrystalError)]
    return policy, rollout, found


def asked_of(structures: list[Structure]) -> list[dict]:
    """What prompts say of real crystals."""
    rng = np.random.default_rng(0)
    written = [INVARIANT.encode(s) for s in structures]
    return [{"space_group": INVARIANT.written_group(ids), "n_atoms": len(INVARIANT.decode(ids)),
             "element": str(rng.choice(s.composition.elements))} for s, ids in zip(structures, written, strict=True)]


# Writing and reading


def test_rock_salt_is_written_as_by_hand():
    # Na at the origin: (0, 0, 0) is the smallest of its orbit; (0, 0, 1/2) the smallest of that of Cl.
    assert INVARIANT.encode(CRYSTALS["rock salt"]) == tokens(*ROCK_SALT)


def test_quartz_is_written_with_the_smallest_point_of_each_orbit():
    ids = INVARIANT.encode(CRYSTALS["quartz"])
    formula, group, parameters, sites = INVARIANT.parse(ids)
    assert (formula, group, parameters.tolist()) == ({14: 3, 8: 6}, 152, [4.92, 4.92, 5.41, 90, 90, 120])
    rotations, shifts = operations(152)
    for _, m, grid in sites:
        orbit = {tuple(p) for p in ((rotations @ grid + shifts * (Q // 24)) % Q).tolist()}
        assert tuple(grid.tolist()) == min(orbit) and len(orbit) == m


def test_no_two_tokens_have_one_name():
    assert len(set(INVARIANT.vocabulary)) == len(INVARIANT.vocabulary)


def test_elements_rise_in_electronegativity():
    order = sorted(range(1, 119), key=lambda z: ranks()[z])
    assert [Element.from_Z(z).symbol for z in order[:4]] == ["Fr", "Cs", "K", "Rb"]  # the same for K and Rb
    assert order.index(9) == 99 and Element.from_Z(order[100]).symbol == "He"  # F, then those that have none


def test_hall_numbers_are_those_of_the_operations():
    for group, hall in enumerate(HALL_NUMBERS, 1):
        found = moyopy.operations_from_number(group, setting=moyopy.Setting.hall_number(hall))
        theirs = {(str(r), str((np.rint(np.array(t) * 24) % 24).tolist()))
                  for r, t in zip(found.rotations, found.translations, strict=True)}
        ours = {(str(r.tolist()), str((t % 24).astype(float).tolist()))
                for r, t in zip(*operations(group), strict=True)}
        assert theirs == ours


def test_every_multiplicity_has_a_token():
    assert tuple(sorted({p.multiplicity for group in range(1, 231) for p in positions(group)})) == MULTIPLICITIES


@pytest.mark.parametrize("supercell", [1, (2, 1, 1), (1, 2, 2)])
def test_a_crystal_comes_back(crystal, supercell):
    ids = INVARIANT.encode(crystal * supercell)
    back = INVARIANT.decode(ids)
    assert StructureMatcher(primitive_cell=True).fit(crystal, back)
    assert group_of(back) == group_of(crystal) == INVARIANT.written_group(ids)
    assert ids == INVARIANT.encode(crystal) == INVARIANT.encode(back)


def test_every_description_is_written_the_same(crystal):
    rng = np.random.default_rng(0)
    assert [INVARIANT.encode(INVARIANT.random_equivalent(crystal, rng)) for _ in range(10)] == [
        INVARIANT.encode(crystal)] * 10


def test_mirror_images_differ():
    right = CRYSTALS["quartz"]
    left = Structure(right.lattice, right.species, -right.frac_coords)
    assert [INVARIANT.written_group(INVARIANT.encode(s)) for s in (right, left)] == [152, 154]
    assert [group_of(INVARIANT.decode(INVARIANT.encode(s))) for s in (right, left)] == [152, 154]


def test_mp20_comes_back(mp20):
    ids = [INVARIANT.encode(s) for s in mp20]
    back = [INVARIANT.decode(i) for i in ids]
    matcher = StructureMatcher()
    assert np.mean([matcher.fit(a, b) for a, b in zip(mp20, back, strict=True)]) >= 0.995
    assert np.mean([group_of(a) == group_of(b) for a, b in zip(mp20, back, strict=True)]) >= 0.99
    assert np.mean([INVARIANT.encode(b) == i for b, i in zip(back, ids, strict=True)]) >= 0.99


def test_mp20_is_written_the_same_from_every_description(mp20):
    rng = np.random.default_rng(0)
    same = [INVARIANT.encode(INVARIANT.random_equivalent(s, rng)) == INVARIANT.encode(s)
            for s in mp20 for _ in range(2)]
    assert np.mean(same) >= 0.99


@pytest.mark.parametrize(
    ("at", "names", "kind"),
    [
        (slice(17, 18), [], "parse"),  # no end
        (slice(0, 17), [], "parse"),
        (slice(4, 5), [], "parse"),  # no end of formula
        (slice(0, 4), [], "parse"),
        (slice(2, 3), ["Na"], "parse"),  # twice in the formula
        (slice(0, 1), ["element?"], "parse"),
        (slice(5, 6), ["Na"], "parse"),  # no Hall number
        (slice(12, 13), [], "parse"),  # half a site
        (slice(8, 18), ["<eos>"], "parse"),  # no sites
        (slice(6, 8), ["5Å", "5Å"], "parse"),
        (slice(9, 10), ["multiplicity8"], "symmetry"),
        (slice(12, 13), ["1/1008"], "symmetry"),
        (slice(1, 2), ["×2"], "chemistry"),
        (slice(13, 14), ["K"], "chemistry"),
    ],
)
def test_broken_sequences_are_named(at, names, kind):
    ids = tokens(*ROCK_SALT)
    ids[at] = tokens(*names)
    with pytest.raises(CrystalError) as error:
        INVARIANT.decode(ids)
    assert error.value.kind == kind


def test_what_cannot_be_written_is_named():
    half = Structure(Lattice.cubic(4), [{"Na": 0.5}], [[0, 0, 0]])
    many = Structure(Lattice.cubic(30), ["H"] * 21, np.random.default_rng(0).random((21, 3)))
    for structure, kind in ((half, "chemistry"), (many, "parse")):
        with pytest.raises(CrystalError) as error:
            INVARIANT.encode(structure)
        assert error.value.kind == kind


@pytest.mark.parametrize(("broken", "written"), [({0.01}, True), ({0.01, 0.1}, True), ({0.01, 0.1, 0.001}, False)])
def test_where_no_symmetry_is_found_other_tolerances_are_tried(monkeypatch, broken, written):
    find = moyopy.MoyoDataset

    def fails(cell, symprec, setting):
        if symprec in broken:
            raise ValueError("broken")
        return find(cell, symprec=symprec, setting=setting)

    expected = INVARIANT.encode(CRYSTALS["rutile"])
    monkeypatch.setattr(moyopy, "MoyoDataset", fails)
    if written:
        assert INVARIANT.encode(CRYSTALS["rutile"]) == expected
    else:
        with pytest.raises(CrystalError, match=r"at any of .*: broken") as error:
            INVARIANT.encode(CRYSTALS["rutile"])
        assert error.value.kind == "symmetry"


# The grammar


@pytest.mark.parametrize("group", [1, 12, 70, 99, 148, 166, 183, 194, 205, 225, 227, 230])
def test_points_have_the_multiplicity_of_the_members_they_are_on(group):
    """Against the operations: a point of a member that is on none of the more special ones inside it."""
    m, t, rng = members(20), tables(20), np.random.default_rng(0)
    rotations, shifts = operations(group)
    for row in range(int(t.base[group]), int(t.base[group]) + int(t.count[group])):
        for member in range(int(m.first[row]), int(m.first[row] + m.number[row]))[:8]:
            u = rng.choice([0, 84, 126, 252, 336, 504, 7, 131], 3)
            grid = (m.shift[member] + m.basis[member] @ u) % Q
            begin = int(m.inside_first[member])
            inner = m.inside[begin : begin + int(m.inside_number[member])]
            whole = np.full_like(inner, 3)
            special = settle(m.shift[inner], m.basis[inner], np.tile(grid, (len(inner), 1)), whole)[1].any()
            orbit = np.unique((rotations @ grid + shifts * (Q // 24)) % Q, axis=0)
            assert (len(orbit) == int(t.members[row])) == (not special)


def test_the_masks_allow_every_crystal(mp20):
    structures = [*CRYSTALS.values(), *mp20]
    conditions = asked_of(structures)
    for known in (("space_group", "n_atoms", "element"), ("space_group",)):
        rows = [INVARIANT.prompt({k: c[k] for k in known}) + INVARIANT.encode(s)
                for c, s in zip(conditions, structures, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        masks = INVARIANT.masks(ids[:, :-1])
        legal = masks.gather(2, ids[:, 4:, None])[..., 0]
        assert legal.all()


def test_samples_are_as_asked(mp20):
    conditions = asked_of(mp20)
    policy, rollout, found = drawn(conditions)
    assert all(len(s) == c["n_atoms"] for s, c in zip(found, conditions, strict=True))
    assert all(Element(c["element"]) in s.composition for s, c in zip(found, conditions, strict=True))
    assert np.mean([group_of(s) == c["space_group"] for s, c in zip(found, conditions, strict=True)]) >= 0.99
    distances = [s.distance_matrix + 9 * np.eye(len(s)) for s in found if len(s) > 1]
    assert np.mean([d.min() > 0.5 for d in distances]) >= 0.99
    again, _ = policy.token_logprobs(rollout.ids, 1.0, conditions)
    assert float(((again - rollout.logprobs) * rollout.mask).abs().max()) < 1e-4


def test_samples_of_nothing_asked_have_what_their_header_says():
    _, rollout, found = drawn([{} for _ in range(24)], seed=1)
    for row, structure in zip(rollout.ids[:, 4:].tolist(), found, strict=True):
        formula = INVARIANT.parse(row)[0]
        assert structure.composition == Composition({Element.from_Z(z): n for z, n in formula.items()})


def test_hard_conditions_are_met():
    asked = [{"formula": "BaTiO3"}, {"formula": "NaCl", "space_group": 225, "n_atoms": 2},
             {"formula": "SiO2", "n_atoms": 9}, {"elements": "Li-Fe-O"}, {"max_atoms": 5},
             {"elements": "Mg-O", "element": "O", "n_atoms": 6}, {"neutral": True, "max_atoms": 8, "n_atoms": 7},
             {"neutral": True, "elements": "Li-Mn-O", "space_group": 14},
             {"chemical_system": "Li-Fe-P-O", "max_atoms": 8}, {"chemical_system": "Ca-O", "space_group": 225},
             {"element": "O-Li-Fe", "n_atoms": 3}, {"element": "Ti-O", "elements": "Ba-Sr-Ti-O", "space_group": 221},
             {"element": "Mg-Si-O", "neutral": True, "crystal_system": "monoclinic", "n_atoms": 10},
             {"chemical_system": "K-Cl", "neutral": True, "n_atoms": 6, "space_group": 36}] * 3
    policy, rollout, found = drawn(asked, seed=2)
    for structure, condition in zip(found, asked, strict=True):
        composition = structure.composition
        assert all(COMPOSITION[key](structure, value) for key, value in condition.items() if key in COMPOSITION)
        assert len(structure) <= condition.get("max_atoms", 20)
        assert len(structure) == condition.get("n_atoms", len(structure))
        if condition.get("neutral"):
            total = Charges.none()
            for element, n in composition.items():
                total = total.plus(Charges.of(element.Z).times(int(n)))
            assert total.closes
    again, _ = policy.token_logprobs(rollout.ids, 1.0, asked)
    assert float(((again - rollout.logprobs) * rollout.mask).abs().max()) < 1e-4


@pytest.mark.parametrize("condition", [
    {"space_group": 227, "n_atoms": 1}, {"space_group": 227, "formula": "BaTiO3", "n_atoms": 5},
    {"neutral": True, "elements": "Na-K"}, {"element": "Li-Fe-O", "space_group": 229, "n_atoms": 4},
    {"chemical_system": "Na-K", "neutral": True}, {"element": "Li-F", "n_atoms": 1}])
def test_what_cannot_be_made_is_refused(condition):
    with pytest.raises(UserError):
        INVARIANT.start(torch.tensor([INVARIANT.prompt(condition)]), [condition])


def test_the_version_is_frozen():
    assert make("invariant", max_atoms=20).version == INVARIANT.version != make("invariant").version
