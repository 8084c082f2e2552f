"""The orbits representation: every group and position written exactly, and a grammar that keeps to them."""

from __future__ import annotations

from contextlib import suppress

import moyopy
import numpy as np
import pytest
import spglib
import torch
from conftest import CRYSTALS
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from policies.model import CrystalPolicy
from policies.representations import make
from policies.representations.canonical import random_equivalent
from policies.representations.distances import MIN_DISTANCE, MIN_HEIGHT
from policies.representations.lattice import EQUAL, FREE, SYSTEMS, free_tokens, read, system_of, write
from policies.representations.orbit_tables import lasting
from policies.representations.patterns import can_have_group, has_group
from policies.representations.symmetry import grid_positions, symmetrise
from policies.representations.wyckoff import centring, positions
from policies.sampler import decode, sample
from rewards.condition import COMPOSITION
from rewards.guards import refuse
from rewards.validity import Validity
from rlgen.types import CrystalError, UserError

ORBITS = make("orbits", max_atoms=20)
SYMPREC = 0.01  # Å
GEOMETRY = Validity(min_distance=MIN_DISTANCE - 1e-6, volume_per_atom=(0.0, np.inf), density=(0.0, np.inf))


def group_of(structure: Structure) -> int:
    found = spglib.get_symmetry_dataset(
        (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers), symprec=SYMPREC)
    return found.number if found else 0


def policy_of(order: str) -> CrystalPolicy:
    torch.manual_seed(0)
    rep = ORBITS if order == "interleaved" else make("orbits", max_atoms=20, order=order)
    return CrystalPolicy.create(rep, hidden_size=32, layers=2, heads=2, intermediate_size=64)


@pytest.fixture(scope="module")
def policy() -> CrystalPolicy:
    return policy_of("interleaved")


def rollout(policy, conditions, seed=0):
    return sample(policy, conditions, torch.Generator().manual_seed(seed))


def some_prompts(count: int, seed: int = 0) -> list[dict]:
    """Groups at random with numbers of atoms that make crystals of just that group, and an element."""
    rng, t = np.random.default_rng(seed), ORBITS.tables
    found = []
    for group in rng.integers(1, 231, size=count).tolist():
        possible = np.flatnonzero(t.reach[t.base[group], 1:]).tolist()
        n = next((n + 1 for n in rng.permutation(possible).tolist() if can_have_group(group, [], n + 1, 0, 20)), None)
        if n is None:
            continue
        found.append({"space_group": group, "n_atoms": n, "element": str(rng.choice(["O", "Fe", "Li"]))})
    return found


# Writing and reading


def test_rock_salt_is_written_as_by_hand():
    # Fm-3m, a = 5.64 Å, Na and Cl on 4a (0, 0, 0) and 4b (1/2, 1/2, 1/2): the lighter one on the first position.
    def orbit(letter):
        return f"orbit{ORBITS.orbit_of[225, letter]}"

    expected = ["group225", "5Å", ".64Å", orbit("a"), "Na", orbit("b"), "Cl", "<eos>"]
    assert [ORBITS.vocabulary[i] for i in ORBITS.encode(CRYSTALS["rock salt"])] == expected


@pytest.mark.parametrize("supercell", [1, (2, 1, 1), (1, 2, 2)])
def test_a_crystal_comes_back(crystal, supercell):
    ids = ORBITS.encode(crystal * supercell)
    back = ORBITS.decode(ids)
    assert StructureMatcher().fit(crystal, back)
    assert group_of(back) == group_of(crystal) == ORBITS.written_group(ids)
    assert len(back) == len(crystal.get_primitive_structure())
    assert ids == ORBITS.encode(crystal) == ORBITS.encode(back)


def test_every_description_is_written_the_same(crystal):
    rng = np.random.default_rng(0)
    assert [ORBITS.encode(random_equivalent(crystal, rng)) for _ in range(10)] == [ORBITS.encode(crystal)] * 10


def test_mirror_images_differ():
    right = CRYSTALS["quartz"]
    left = Structure(right.lattice, right.species, -right.frac_coords)
    assert [ORBITS.written_group(ORBITS.encode(s)) for s in (right, left)] == [152, 154]


def test_mp20_comes_back(mp20):
    written = [ORBITS.encode(s) for s in mp20]
    back = [ORBITS.decode(ids) for ids in written]
    matcher, rng = StructureMatcher(), np.random.default_rng(0)
    assert np.mean([matcher.fit(a, b) for a, b in zip(mp20, back, strict=True)]) >= 0.995
    assert np.mean([group_of(a) == group_of(b) for a, b in zip(mp20, back, strict=True)]) >= 0.99
    assert np.mean([ORBITS.encode(b) == ids for b, ids in zip(back, written, strict=True)]) >= 0.99
    assert np.mean([ORBITS.encode(random_equivalent(s, rng)) == ids
                    for s, ids in zip(mp20, written, strict=True)]) >= 0.99


@pytest.mark.parametrize("group", range(1, 231))
def test_every_position_of_a_group_comes_back(group):
    # With an atom of its own element on each position, at generic parameters: 1731 positions in all.
    rep, (points, _) = make("orbits", max_atoms=1000), centring(group)
    parameters = np.array([31.07, 35.11, 39.13, 95.0, 101.0, 107.0])
    ids = [rep.first["space_group"] + group, *write(parameters, system_of(group), rep.first)]
    counts = {}
    for z, position in enumerate(positions(group), 1):
        grid = np.array([101, 211, 307])[: position.dof]  # nothing special
        orbit = grid_positions(position, grid)
        assert len(np.unique(orbit, axis=0)) == position.multiplicity
        ids += [rep.first["orbit"] + rep.orbit_of[group, position.letter], rep.first["element"] + z]
        ids += [rep.first["coordinate"] + int(k) for k in grid]
        counts[z] = position.multiplicity // points
    matrix, _, numbers = rep.decode_arrays([*ids, rep.eos])
    assert dict(zip(*np.unique(numbers, return_counts=True), strict=True)) == counts
    volume = np.linalg.det(Lattice.from_parameters(*read(ids[1 : 1 + free_tokens(system_of(group))], system_of(group),
                                                         rep)).matrix)
    assert np.linalg.det(matrix) * points == pytest.approx(volume)


@pytest.mark.parametrize("group", range(1, 231))
def test_a_cell_of_every_group_comes_back(group):
    system = system_of(group)
    parameters = np.array([5.01, 6.02, 7.03, 80.05, 95.1, 103.15])
    back = read(write(parameters, system, ORBITS.first), system, ORBITS)
    for i in FREE[system]:
        assert back[i] == pytest.approx(parameters[i])
    assert back[:3].tolist() == [back[i] for i in EQUAL[system]]
    fixed = {4: 120.0}.get(system, 90.0)
    assert all(back[i] == (fixed if i == 5 else 90.0) for i in (3, 4, 5) if i not in FREE[system])


def test_crystal_systems_are_those_of_the_international_tables():
    begins = {"triclinic": 1, "monoclinic": 3, "orthorhombic": 16, "tetragonal": 75, "hexagonal": 143, "cubic": 195}
    for name, group in begins.items():
        assert SYSTEMS[system_of(group)] == name
        assert group == 1 or SYSTEMS[system_of(group - 1)] != name


def test_enargite_like_low_symmetry_is_pinned_on_the_rarest_element():
    # P 1 has no fixed point: the origin is on the rarest element.
    s = Structure(Lattice.from_parameters(4.1, 5.3, 6.7, 83, 95, 101), ["Na", "Cl", "Cl"],
                  [[0.31, 0.22, 0.17], [0.8, 0.6, 0.1], [0.55, 0.9, 0.7]])
    found = symmetrise(s)
    assert found.group == 1
    assert [site.grid for site in found.sites if site.z == 11] == [(0, 0, 0)]


def names(*tokens: str) -> list[int]:
    return [ORBITS.vocabulary.index(t) for t in tokens]


CUBIC = ("group221", "4Å", ".00Å")


@pytest.mark.parametrize(
    ("tokens", "kind", "message"),
    [
        ((*CUBIC, "orbit0", "Na"), "parse", "does not end"),
        (("<eos>",), "parse", "no space group"),
        (("group?", "<eos>"), "parse", "no space group"),
        ((*CUBIC, "<eos>"), "parse", "do not make a cell and an atom"),
        (("group221", "4Å", "4Å", "Na", "Na", "<eos>"), "parse", "where a hundredth belongs"),
        ((*CUBIC, f"orbit{ORBITS.orbit_of[62, 'c']}", "Na", "<eos>"), "symmetry", "is no orbit of group 221"),
        ((*CUBIC, f"orbit{ORBITS.orbit_of[221, 'a']}", "element?", "<eos>"), "parse", "a site of no element"),
        ((*CUBIC, f"orbit{ORBITS.orbit_of[221, 'e']}", "Na", "<eos>"), "parse", "the last site is not whole"),
        ((*CUBIC, f"orbit{ORBITS.orbit_of[221, 'e']}", "Na", "0/1008", "<eos>"), "symmetry", "coincide"),
    ],
)
def test_what_cannot_be_read_says_why(tokens, kind, message):
    with pytest.raises(CrystalError, match=message) as error:
        ORBITS.decode(names(*tokens))
    assert error.value.kind == kind


def test_random_tokens_never_crash_the_reader():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        ids = rng.integers(len(ORBITS.vocabulary), size=rng.integers(1, 30)).tolist()
        with suppress(CrystalError):
            ORBITS.decode([*ids, ORBITS.eos])


# Which occupations have the group they are written in


def index(group: int, letter: str) -> int:
    return [p.letter for p in positions(group)].index(letter)


def test_symmetry_of_occupations_by_hand():
    a, b, c = (index(225, letter) for letter in "abc")
    assert has_group(225, [(a, 11), (b, 17)])  # rock salt
    assert not has_group(225, [(a, 11), (b, 11)])  # the same element on both: a simple cubic lattice
    assert has_group(225, [(c, 9), (a, 20)])  # fluorite
    assert not has_group(225, [(c, 9)])  # simple cubic again
    a, b, c, d = (index(216, letter) for letter in "abcd")
    assert has_group(216, [(a, 14), (c, 22)])  # zinc blende
    assert not has_group(216, [(a, 14), (b, 22), (c, 9), (d, 9)])


def test_symmetry_of_occupations_is_that_of_a_symmetry_finder():
    rng, seen = np.random.default_rng(3), []
    edges = {"triclinic": (9.13, 10.37, 11.71, 97.3, 103.1, 94.7), "monoclinic": (9.13, 10.37, 11.71, 90, 103.1, 90),
             "orthorhombic": (9.13, 10.37, 11.71, 90, 90, 90), "tetragonal": (9.13, 9.13, 11.71, 90, 90, 90),
             "hexagonal": (9.13, 9.13, 11.71, 90, 90, 120), "cubic": (9.13, 9.13, 9.13, 90, 90, 90)}
    for group in rng.integers(1, 231, 150).tolist():
        table = positions(group)
        chosen = sorted(set(rng.integers(0, len(table), 3).tolist()))
        sites = [(i, int(rng.integers(2))) for i in chosen if table[i].multiplicity <= 48]
        if not sites:
            continue
        frac = [table[i].orbit_matrix @ rng.random(table[i].dof) + table[i].orbit_shift / 24 for i, _ in sites]
        numbers = [z + 1 for (i, z), orbit in zip(sites, frac, strict=True) for _ in orbit]
        lattice = Lattice.from_parameters(*edges[SYSTEMS[system_of(group)]])
        found = moyopy.MoyoDataset(moyopy.Cell(lattice.matrix.tolist(), np.concatenate(frac).tolist(), numbers),
                                     symprec=1e-3)
        same = found.number == group and len(found.prim_std_cell.numbers) * centring(group)[0] == len(numbers)
        assert has_group(group, sites) == same, (group, sites)
        seen.append(same)
    assert {True, False} == set(seen)


def test_room_on_lines_is_counted():
    # P4mm has lines of one atom (a, b) and of two (c), then planes and general positions of four and eight.
    def begun(left, room):
        return lasting(20, 99, 0, left, room)

    assert begun(9, (1, 1, 1, 255, 255, 255, 255)) == (True, True, False, False, False, False, False)
    # An even number from two lines with one place each: both or none.
    assert begun(8, (1, 0, 0, 255, 255, 255, 255))[0] is False
    assert begun(8, (2, 0, 0, 255, 255, 255, 255))[0] is False  # and 6 more cannot be made
    assert begun(6, (1, 1, 0, 255, 255, 255, 255))[0] is True


def test_what_can_still_get_its_group():
    a, e = index(216, "a"), index(216, "e")
    # One atom at the origin of F-43m is face-centred cubic; one more on 4b, 4c or 4d: rock salt or zinc blende.
    assert not can_have_group(216, [(a, 14)], 0, a + 1, 20)
    assert can_have_group(216, [(a, 14)], 1, a + 1, 20)
    # After 4b, 4c and 4d only a position with a free parameter is left, of four atoms at least.
    assert not can_have_group(216, [(a, 14)], 1, e, 20)
    assert can_have_group(216, [(a, 14)], 4, e, 20)


# The grammar


def test_rollouts_keep_to_what_is_asked(policy):
    conditions = some_prompts(200)
    found = decode(policy, rollout(policy, conditions))
    assert all(isinstance(s, Structure) for s in found)
    assert all(len(s) == c["n_atoms"] for s, c in zip(found, conditions, strict=True))
    assert all(c["element"] in s.symbol_set for s, c in zip(found, conditions, strict=True))
    # spglib takes minutes for cells of 1.5 by 100 Å.
    ordinary = [(s, c) for s, c in zip(found, conditions, strict=True) if max(s.lattice.abc) < 10 * min(s.lattice.abc)]
    assert len(ordinary) > 50
    assert np.mean([group_of(s) == c["space_group"] for s, c in ordinary]) >= 0.99
    # Cells of 1.5 by 100 Å can leave no place for the last atom.
    assert np.mean([not GEOMETRY.check(s) for s in found]) >= 0.99


def test_rollouts_without_a_wish_end_and_decode(policy):
    found = decode(policy, rollout(policy, [{}] * 50))
    assert all(isinstance(s, Structure) and len(s) <= 20 for s in found)


@pytest.mark.parametrize(
    "hard",
    [
        {"formula": "SrTiO3", "n_atoms": 5, "space_group": 221},
        {"formula": "SrTiO3"},
        {"formula": "Fe2O3", "n_atoms": 10, "element": "O"},
        {"formula": "NaCl", "space_group": 225},
        {"elements": "Li-Fe-P-O", "max_atoms": 9},
        {"elements": "Li-O", "space_group": 166, "n_atoms": 6, "element": "Li"},
        {"neutral": True, "n_atoms": 7},
        {"neutral": True, "elements": "Al-O-F", "max_atoms": 8, "element": "F"},
        {"neutral": True, "space_group": 62, "elements": ["Ca", "Ti", "O"]},
        {"chemical_system": "Li-Fe-P-O", "space_group": 12},
        {"chemical_system": "Ca-O", "max_atoms": 3},
        {"chemical_system": "K-Cl", "neutral": True, "element": "Cl", "n_atoms": 6},
        {"element": "Li-Fe-O", "n_atoms": 3},
        {"element": "O-Ti", "elements": "Ba-Sr-Ti-O", "space_group": 221, "n_atoms": 5},
        {"element": "Mg-Si-O", "neutral": True, "space_group": 14},
    ],
    ids=str,
)
@pytest.mark.parametrize("order", ["interleaved", "published"])
def test_hard_conditions_are_always_met(hard, order):
    policy = policy_of(order)
    drawn = rollout(policy, [hard] * 30)
    for s in decode(policy, drawn):
        assert isinstance(s, Structure)
        assert all(COMPOSITION[key](s, value) for key, value in hard.items() if key in COMPOSITION)
        assert len(s) <= hard.get("max_atoms", 20)
        assert len(s) == hard.get("n_atoms", len(s))
        if hard.get("neutral"):
            assert can_be_neutral(s)
        assert not hard.get("space_group") or ORBITS.written_group(drawn.ids[0, 4:].tolist()) == hard["space_group"]
    again, _ = policy.token_logprobs(drawn.ids, drawn.temperature, drawn.conditions)
    assert ((again - drawn.logprobs) * drawn.mask).abs().max() < 1e-4
    free, _ = policy.token_logprobs(drawn.ids, drawn.temperature)
    assert ((free - drawn.logprobs) * drawn.mask).min() < -0.1  # without the conditions they were less likely


def can_be_neutral(structure: Structure) -> bool:
    """By brute force: the sums of every atom's common oxidation states."""
    sums = {0}
    for element in structure.species:
        sums = {s + q for s in sums for q in element.common_oxidation_states or (0,)}
    return 0 in sums


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"space_group": 225, "n_atoms": 3, "formula": "NaCl"}, "no whole number of formula units"),
        ({"space_group": 230, "n_atoms": 3}, "no choice of Wyckoff positions"),
        ({"space_group": 225, "formula": "NaCl2KBr", "n_atoms": 5}, "no choice of Wyckoff positions"),
        ({"formula": "NaQ"}, "formula"),
        ({"formula": "Na0.5Cl"}, "whole numbers"),
        ({"elements": "Li-Xx"}, "no element"),
        ({"elements": "Li", "formula": "NaCl"}, "formula=NaCl has elements that elements=Li does not allow"),
        ({"element": "Na", "formula": "LiF"}, "element=Na has elements that formula=LiF does not allow"),
        ({"element": "Na-F", "formula": "LiF"}, "element=Na-F has elements that formula=LiF"),
        ({"chemical_system": "Li-F-O", "formula": "LiF"}, "chemical_system=Li-F-O has elements that formula=LiF"),
        ({"chemical_system": "Li-O", "element": "Li-F"}, "element=Li-F has elements that chemical_system=Li-O"),
        ({"chemical_system": "Li-O", "elements": "Li-F"}, "does not allow"),
        ({"element": "Li-F-O", "n_atoms": 2}, "n_atoms=2 is too few for 3 elements"),
        ({"element": "Li-Xx"}, r"element='Li-Xx': \['Xx'\] is no element"),
        ({"element": "Li-Fe-O", "space_group": 229, "n_atoms": 4}, "no choice of Wyckoff positions of space group 229"),
        ({"chemical_system": "Na-K", "neutral": True, "space_group": 225}, "space group 225 has all of"),
        ({"formula": "NaF2", "neutral": True}, "neutral"),
        ({"element": "O", "neutral": True, "n_atoms": 1}, "no choice of Wyckoff positions of space group 1 to 230"),
        ({"element": "Na-K-O", "max_atoms": 2}, "max_atoms=2 is too few for 3 elements"),
        ({"max_atoms": 3, "n_atoms": 4}, "over max_atoms"),
        ({"max_atoms": 0}, "at least 1"),
        ({"colour": "blue"}, "cannot ask for colour"),
    ],
)
def test_what_cannot_be_asked_for_is_an_error(policy, condition, message):
    with pytest.raises(UserError, match=message):
        rollout(policy, [condition])


def test_only_orbits_of_the_group_are_allowed(policy):
    drawn = rollout(policy, some_prompts(100, seed=3))
    legal = ORBITS.masks(drawn.ids)
    first = ORBITS.first["orbit"]
    for row, allowed in enumerate(legal):
        group = ORBITS.written_group(drawn.ids[row, 4:].tolist())
        of_group = {ORBITS.orbit_of[group, p.letter] for p in positions(group)}
        seen = allowed[:, first : first + ORBITS.sizes["orbit"]].any(0).nonzero()[:, 0].tolist()
        assert set(seen) <= of_group


def test_the_grammar_allows_every_real_crystal(mp20):
    written = [ORBITS.encode(s) for s in [*CRYSTALS.values(), *mp20]]
    sequences = []
    for ids in written:
        structure = ORBITS.decode(ids)
        condition = {"space_group": ORBITS.written_group(ids), "n_atoms": len(structure)}
        sequences.append(torch.tensor([*ORBITS.prompt(condition), *ids]))
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=ORBITS.pad)
    for part in ids.split(256):
        answer = part[:, 4:]
        allowed = ORBITS.masks(part[:, :-1]).gather(2, answer[..., None])[..., 0]
        assert (allowed | (answer == ORBITS.pad)).all()


def test_cells_are_thick_and_roomy_enough(policy):
    drawn = rollout(policy, some_prompts(200, seed=5))
    for s in decode(policy, drawn):
        assert s.volume / len(s) >= 3.0 - 1e-6
        conventional = s.get_reduced_structure("niggli").lattice
        assert min(conventional.abc) >= MIN_HEIGHT / 4  # of primitive vectors of a face-centred cell, at the least


def test_elements_too_large_for_a_point_are_left_out():
    # Pm-3m, a = 4 Å, Cs (2.44 Å) at the origin: the next point, a face's centre, is 2.83 Å away. The radius of what
    # may be there is at most 2.83 / 0.6 - 2.44 = 2.27 Å: K (2.03) and Rb (2.20), but not Fr (2.60) nor Cs.
    state = ORBITS.start(torch.tensor([ORBITS.prompt({})]), None)
    for token in names(*CUBIC, f"orbit{ORBITS.orbit_of[221, 'a']}", "Cs", f"orbit{ORBITS.orbit_of[221, 'c']}"):
        assert state.legal()[0, token]
        state.advance(torch.tensor([token]))
    legal = state.legal()[0]
    assert all(legal[ORBITS.vocabulary.index(symbol)] for symbol in ("H", "O", "K", "Rb"))
    assert not any(legal[ORBITS.vocabulary.index(symbol)] for symbol in ("Cs", "Fr"))


def test_few_atoms_are_closer_than_fits_their_elements():
    policy, prompts = CrystalPolicy.load("shipped")
    drawn = rollout(policy, prompts.sample(256, np.random.default_rng(5)), seed=5)
    close = sum(refuse(s, 0.6, 1.0).startswith("close") for s in decode(policy, drawn))
    assert close / 256 < 0.15  # a third of them, with 0.5 Å for every pair
