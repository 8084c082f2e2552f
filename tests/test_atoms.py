"""The atoms representation: one string for all descriptions of a crystal, and every string read back as written."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from conftest import CRYSTALS, random_conditions, tiny_policy
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Element, Lattice, Structure

from policies.model import CrystalPolicy
from policies.representations import make
from policies.representations.asked import Asked, Charges, can_be_neutral
from policies.representations.atoms import ORDERS, Atoms
from policies.representations.canonical import canonical_cell, random_equivalent
from policies.representations.distances import MIN_DISTANCE
from policies.representations.quantiser import (
    MAX_ANGLE,
    MIN_ANGLE,
    Q,
    lattice_parameters,
    quantise_coordinates,
    quantise_lattice,
)
from policies.representations.species import Composer, Species, guess_states
from policies.sampler import decode, sample
from rewards.condition import COMPOSITION
from rlgen.types import CrystalError, UserError

ATOMS = make("atoms", max_atoms=20)
SYMPREC = 0.01  # Å
END = [ATOMS.eos]
#: Every way of writing atoms.
WAYS = [make("atoms", max_atoms=20, lattice=lattice, order=order, oxidation=oxidation)
        for lattice, order, oxidation in product(("first", "last"), ORDERS, (False, True))]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.layout)


def tokens(*names: str, way: Atoms = ATOMS) -> list[int]:
    return [way.vocabulary.index(name) for name in names]


def random_policy(way: Atoms, seed: int = 0, sharpness: float = 1.0) -> CrystalPolicy:
    torch.manual_seed(seed)
    policy = CrystalPolicy.create(way, hidden_size=32, layers=2, heads=2, intermediate_size=64)
    with torch.no_grad():
        policy.embed.weight.mul_(sharpness)
    return policy.eval()


def group_of(structure: Structure) -> int:
    return structure.get_space_group_info(SYMPREC)[1]


# Writing and reading


def test_rock_salt_is_written_as_by_hand():
    # The primitive cell: a = 5.64 / sqrt(2) = 3.988 Å and 60°. Cl is the heavier one; Na, as rare and lighter, is the
    # origin; the other atom is in the middle.
    lattice = tokens(*("60°", "+0/20°") * 3, *("3Å", ".99Å") * 3)
    chlorine, sodium = tokens("Cl", *["504/1008"] * 3), tokens("Na", *["0/1008"] * 3)
    assert ATOMS.encode(CRYSTALS["rock salt"]) == [*lattice, *chlorine, *sodium, *END]
    assert way(order="rising").encode(CRYSTALS["rock salt"]) == [*lattice, *sodium, *chlorine, *END]
    assert way(order="xyz").encode(CRYSTALS["rock salt"]) == [*lattice, *sodium, *chlorine, *END]
    assert way(lattice="last").encode(CRYSTALS["rock salt"]) == [*chlorine, *sodium, *lattice, *END]


def way(**parameters) -> Atoms:
    return make("atoms", max_atoms=20, **parameters)


def names(way: Atoms, structure: Structure) -> list[str]:
    return [way.vocabulary[i] for i in way.encode(structure)]


def test_species_have_their_oxidation_states():
    charged = way(oxidation=True)
    assert [name for name in names(charged, CRYSTALS["rock salt"]) if name[:2] in ("Na", "Cl")] == ["Cl-1", "Na+1"]
    assert "Ti+4" in names(charged, CRYSTALS["perovskite"]) and "O-2" in names(charged, CRYSTALS["perovskite"])
    assert names(charged, CRYSTALS["hcp"]).count("Mg?") == 2


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("NaCl", {"Na": 1, "Cl": -1}),
        ("LiFePO4", {"Li": 1, "Fe": 2, "P": 5, "O": -2}),
        ("KMnO4", {"K": 1, "Mn": 7, "O": -2}),
        ("Fe3O4", {}),  # two states of one element
        ("NaK", {}),
        ("Fe", {}),
        ("He", {}),
    ],
)
def test_guessed_oxidation_states(formula, expected):
    counts = Composition(formula).get_el_amt_dict()
    found = guess_states(tuple((Element(symbol).Z, int(n)) for symbol, n in counts.items()))
    assert found == {Element(symbol).Z: q for symbol, q in expected.items()}


def test_the_table_of_states_is_frozen_and_holds_every_element():
    charged = Species.charged()
    assert len(charged.names) == len(set(charged.names)) == 501
    assert {z for z, q in zip(charged.z, charged.states, strict=True) if q == 0} == set(range(1, 119))
    assert "Fe+3" in charged.names and "Fe?" in charged.names


@every_way
def test_every_way_brings_crystals_back(way, crystal):
    ids = way.encode(crystal)
    back = way.decode(ids)
    assert StructureMatcher(primitive_cell=True).fit(crystal, back)
    assert way.encode(back) == ids
    again = way.decode(way.augment(np.array(ids), np.random.default_rng(0)))
    assert way.encode(again) == ids and (way.order == "random" or again == back)
    z, frac = back.atomic_numbers, back.frac_coords.tolist()
    assert way.order != "rising" or list(z) == sorted(z)
    assert way.order not in ("falling", "random") or list(z) == sorted(z, reverse=True)
    assert way.order != "xyz" or frac == sorted(frac)
    assert len(ids) < way.max_length and make("atoms", **way.parameters).version == way.version


def test_ways_are_told_apart():
    assert len({way.version for way in WAYS}) == len(WAYS)


@pytest.mark.parametrize("wrong", [{"lattice": "middle"}, {"order": "high"}, {"oxidation": "some"}])
def test_unknown_ways_are_the_users_mistake(wrong):
    with pytest.raises(UserError, match=r"known: (f|F)"):
        way(**wrong)


@pytest.mark.parametrize("lattice", ["first", "last"])
def test_a_random_order_and_origin_are_others_each_time(lattice):
    shuffled, rng = way(order="random", lattice=lattice), np.random.default_rng(0)
    ids = np.array(shuffled.encode(CRYSTALS["GdFeO3"]))
    others = [shuffled.augment(ids, rng) for _ in range(5)]
    assert len({tuple(other) for other in [ids, *others]}) == 6
    assert any(shuffled.decode(other).atomic_numbers != shuffled.decode(ids).atomic_numbers for other in others)
    for other in others:
        moved = shuffled.decode(other)
        assert not any(np.allclose(x, y) for x in moved.frac_coords for y in shuffled.decode(ids).frac_coords)
        assert moved.lattice == shuffled.decode(ids).lattice
        assert StructureMatcher(primitive_cell=False, scale=False).fit(shuffled.decode(other), shuffled.decode(ids))
        assert shuffled.encode(shuffled.decode(other)) == ids.tolist()
    assert ATOMS.augment(ids, rng) is ids


def test_arrays_are_those_of_the_crystal(crystal):
    ids = ATOMS.encode(crystal)
    matrix, frac, numbers = ATOMS.decode_arrays(ids)
    back = ATOMS.decode(ids)
    assert (back.lattice.matrix == matrix).all() and tuple(numbers) == back.atomic_numbers
    assert (back.frac_coords == frac).all()


def test_no_two_tokens_have_one_name():
    assert len(set(ATOMS.vocabulary)) == len(ATOMS.vocabulary)


@pytest.mark.parametrize("supercell", [1, (2, 1, 1), (1, 2, 2)])
def test_a_crystal_comes_back(crystal, supercell):
    ids = ATOMS.encode(crystal * supercell)
    back = ATOMS.decode(ids)
    assert StructureMatcher(primitive_cell=True).fit(crystal, back)
    assert group_of(back) == group_of(crystal)
    assert ids == ATOMS.encode(crystal)
    assert len(ids) == 12 + 4 * len(crystal.get_primitive_structure()) + 1 == 12 + 4 * len(back) + 1


def test_every_description_is_written_the_same(crystal):
    rng = np.random.default_rng(0)
    others = [ATOMS.encode(random_equivalent(crystal, rng)) for _ in range(10)]
    assert others == [ATOMS.encode(crystal)] * 10


def test_mp20_comes_back(mp20):
    back = [ATOMS.decode(ATOMS.encode(s)) for s in mp20]
    matcher = StructureMatcher()
    assert np.mean([matcher.fit(a, b) for a, b in zip(mp20, back, strict=True)]) >= 0.995
    assert np.mean([group_of(a) == group_of(b) for a, b in zip(mp20, back, strict=True)]) >= 0.98


def test_what_is_read_from_mp20_is_written_as_it_was(mp20):
    written = [ATOMS.encode(s) for s in mp20]
    assert np.mean([ATOMS.encode(ATOMS.decode(ids)) == ids for ids in written]) >= 0.98


def test_mp20_is_written_the_same_from_every_description(mp20):
    rng = np.random.default_rng(0)
    same = [ATOMS.encode(random_equivalent(s, rng)) == ATOMS.encode(s) for s in mp20]
    assert np.mean(same) >= 0.99


def test_random_equivalents_are_the_same_crystal_described_anew(crystal):
    rng = np.random.default_rng(1)
    other = random_equivalent(crystal, rng)
    assert StructureMatcher(primitive_cell=False, scale=False).fit(crystal, other)
    assert not np.allclose(crystal.lattice.matrix, other.lattice.matrix)
    assert np.linalg.det(other.lattice.matrix) * np.linalg.det(crystal.lattice.matrix) > 0


def test_mirror_images_differ():
    right = CRYSTALS["quartz"]
    left = Structure(right.lattice, right.species, -right.frac_coords)
    assert ATOMS.encode(left) != ATOMS.encode(right)
    assert [group_of(ATOMS.decode(ATOMS.encode(s))) for s in (right, left)] == [152, 154]


def test_mirror_images_of_what_is_not_chiral_are_the_same():
    rutile = CRYSTALS["rutile"]
    assert ATOMS.encode(Structure(rutile.lattice, rutile.species, -rutile.frac_coords)) == ATOMS.encode(rutile)


def test_the_rarest_element_is_the_origin():
    cell = canonical_cell(CRYSTALS["baddeleyite"])
    assert cell.grid[cell.numbers == 40].tolist()[0] == [0, 0, 0]
    assert cell.numbers.tolist() == sorted(cell.numbers.tolist(), reverse=True)


@pytest.mark.parametrize(
    ("structure", "kind"),
    [
        (Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]), "chemistry"),
        (Structure(Lattice.cubic(4), [{"Na": 0.5}], [[0, 0, 0]]), "chemistry"),
        (Structure(Lattice.cubic(4), ["X"], [[0, 0, 0]]), "chemistry"),
        (Structure(Lattice.cubic(4), [], []), "chemistry"),
        (Structure(Lattice.cubic(4), ["Na", "Na"], [[0, 0, 0], [0, 0, 0]]), "symmetry"),
        (Structure(Lattice.orthorhombic(3, 4, 130), ["Na"], [[0, 0, 0]]), "geometry"),
        (Structure(Lattice.cubic(0.8), ["H"], [[0, 0, 0]]), "geometry"),
        (Structure(Lattice.cubic(30), ["H"] * 21, np.random.default_rng(0).random((21, 3))), "parse"),
    ],
    ids=["mixed site", "half a site", "no element", "no atom", "two in one place", "long cell", "short cell",
         "too many atoms"],
)
def test_what_cannot_be_written_is_named(structure, kind):
    with pytest.raises(CrystalError) as error:
        ATOMS.encode(structure)
    assert error.value.kind == kind


# The grid


@pytest.mark.parametrize("n", [2, 3, 4, 6, 8, 12, 24])
def test_special_coordinates_are_exact(n):
    fractions = np.arange(n) / n
    assert (quantise_coordinates(fractions) / Q == fractions).all()


def test_coordinates_are_periodic_and_rounded_to_the_nearest_step():
    x = np.random.default_rng(0).random(10_000) * 4 - 2
    k = quantise_coordinates(x)
    assert k.min() >= 0 and k.max() < Q
    miss = (k / Q - x + 0.5) % 1 - 0.5
    assert np.abs(miss).max() <= 0.5 / Q + 1e-6
    assert quantise_coordinates(np.array([-1e-9, 1 - 1e-9, 0.99999])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("noise", [-1e-9, 0.0, 1e-9])
def test_ties_do_not_hang_on_noise(noise):
    assert quantise_coordinates(np.array([0.5 / Q + noise]))[0] == 1
    assert quantise_lattice(np.array([2.345 + noise] * 3 + [90.025 + noise] * 3)).tolist() == [235] * 3 + [1801] * 3


def test_lattices_within_the_range_come_back():
    rng = np.random.default_rng(0)
    for _ in range(200):
        parameters = np.r_[rng.uniform(1, 127.99, 3), rng.uniform(MIN_ANGLE, MAX_ANGLE, 3)]
        miss = np.abs(lattice_parameters(quantise_lattice(parameters)) - parameters)
        assert miss[:3].max() < 0.0051 and miss[3:].max() < 0.0251
    exact = np.array([1.0, 1.01, 127.99, 60.0, 90.0, 120.0])
    assert (lattice_parameters(quantise_lattice(exact)) == exact).all()


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("beyond", ["below", "above"])
def test_a_lattice_off_the_grid_is_refused_and_not_clipped(at, beyond):
    lowest, highest = (1.0, 127.99) if at < 3 else (30.0, 150.0)
    good = np.array([5.0, 5, 5, 90, 90, 90])
    good[at] = lowest if beyond == "below" else highest
    assert lattice_parameters(quantise_lattice(good))[at] == good[at]
    good[at] += -0.03 if beyond == "below" else 0.03
    with pytest.raises(CrystalError, match="length" if at < 3 else "angle") as error:
        quantise_lattice(good)
    assert error.value.kind == "geometry"


# What cannot be read

RIGHT, FOUR = tokens(*("90°", "+0/20°") * 3), tokens(*("4Å", ".00Å") * 3)
LATTICE = RIGHT + FOUR
ATOM = tokens("Na", "0/1008", "0/1008", "0/1008")
FLAT = tokens("60°", "+0/20°", "60°", "+0/20°", "120°", "+0/20°") + FOUR


@pytest.mark.parametrize(
    ("ids", "kind", "says"),
    [
        (LATTICE + ATOM, "parse", "end"),
        ([], "parse", "end"),
        (END, "parse", "whole atoms"),
        (LATTICE + END, "parse", "whole atoms"),
        (LATTICE + ATOM[:3] + END, "parse", "whole atoms"),
        (LATTICE + ATOM + ATOM[:2] + END, "parse", "whole atoms"),
        (LATTICE[:10] + ATOM + END, "parse", "whole atoms"),
        (LATTICE[1:] + LATTICE[:1] + ATOM + END, "parse", "where a degree belongs"),
        (LATTICE + ATOM[::-1] + END, "parse", "where a element belongs"),
        (LATTICE + tokens("Na", "0/1008", "Cl", "0/1008") + END, "parse", "Cl where a coordinate belongs"),
        (LATTICE + tokens("element?") + ATOM[1:] + END, "parse", "no element"),
        ([*LATTICE, 10**6, *ATOM[1:], *END], "parse", "1000000 where"),
        ([*LATTICE, -1, *ATOM[1:], *END], "parse", "-1 where"),
        (FLAT + ATOM + END, "geometry", "no cell has the angles"),
        (tokens(*("150°", "+0/20°") * 3) + FOUR + ATOM + END, "geometry", "no cell has the angles"),
    ],
)
def test_what_cannot_be_read_is_named(ids, kind, says):
    with pytest.raises(CrystalError, match=says) as error:
        ATOMS.decode(ids)
    assert error.value.kind == kind


def test_what_follows_the_end_is_not_read():
    ids = LATTICE + ATOM + END
    assert ATOMS.decode([*ids, ATOMS.pad, ATOMS.pad]) == ATOMS.decode(ids)


# Prompts


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({}, ("<bos>", "group?", "atoms?", "element?")),
        ({"n_atoms": 7}, ("<bos>", "group?", "atoms7", "element?")),
        ({"space_group": 225, "n_atoms": 20, "element": "Na"}, ("<bos>", "group225", "atoms20", "Na")),
    ],
)
def test_prompts(condition, expected):
    assert ATOMS.prompt(condition) == tokens(*expected)


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ({"band_gap": 1}, "known: space_group, n_atoms, element"),
        ({"space_group": 231}, "1 to 230"),
        ({"n_atoms": 21}, "1 to 20"),
        ({"element": "Xx"}, "no element"),
    ],
)
def test_what_cannot_be_asked_for_is_the_users_mistake(condition, says):
    with pytest.raises(UserError, match=says):
        ATOMS.prompt(condition)


# The grammar


def padded(rows: list[list[int]]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def truths(structure: Structure, way: Atoms = ATOMS) -> dict:
    written = way.decode(way.encode(structure))
    return {"space_group": group_of(structure), "n_atoms": len(written), "element": structure.species[0].symbol}


def hard_truths(structure: Structure, way: Atoms = ATOMS) -> dict:
    composition = structure.composition.element_composition.reduced_composition
    counts = [(element.Z, int(n)) for element, n in composition.items()]
    return {"formula": composition.formula.replace(" ", ""), "elements": composition.chemical_system, "max_atoms": 20,
            "neutral": not way.oxidation and can_be_neutral(dict(counts))}


def some_sequences(rng: np.random.Generator) -> torch.Tensor:
    """Every built crystal under a random part of its own prompt."""
    rows = []
    for structure in CRYSTALS.values():
        asked = {k: v for k, v in truths(structure).items() if rng.random() < 0.6}
        rows.append(ATOMS.prompt(asked) + ATOMS.encode(structure))
    return padded(rows)


def test_the_mask_of_a_prefix_is_a_column_of_the_whole_mask():
    ids, p = some_sequences(np.random.default_rng(0)), ATOMS.prompt_length
    whole = ATOMS.masks(ids)
    assert whole.shape == (len(ids), ids.shape[1] - p + 1, len(ATOMS.vocabulary))
    for t in range(p, ids.shape[1] + 1, 3):
        assert (ATOMS.masks(ids[:, :t]) == whole[:, : t - p + 1]).all()


@every_way
def test_rows_do_not_depend_on_those_beside_them(way):
    conditions = [hard_truths(s, way) if i % 2 else {} for i, s in enumerate(CRYSTALS.values())]
    rows = [way.prompt({}) + way.encode(s) for s in CRYSTALS.values()]
    ids = padded(rows)
    whole = way.masks(ids, conditions)
    assert whole.any(-1).all()
    for i, row in enumerate(rows):
        alone = way.masks(torch.tensor([row]), conditions[i : i + 1])[0]
        assert (alone == whole[i, : len(alone)]).all()
    state, trimmed = way.start(ids[:, :4], conditions), way.start(ids[:, :4], conditions)
    for t in range(4, ids.shape[1]):
        if t == 20:
            trimmed.keep(5)
        state.advance(ids[:, t])
        trimmed.advance(ids[: len(trimmed.ended), t])
        assert (trimmed.legal() == state.legal()[: len(trimmed.ended)]).all()


def assert_legal(structures: list[Structure], way: Atoms = ATOMS) -> None:
    """Each crystal's own sequence is legal under all of its prompt and under nothing asked, and as it is hard asked."""
    written = [way.encode(s) for s in structures]
    rng = np.random.default_rng(0)
    for asked in ({}, truths, hard_truths):
        conditions = [asked(s, way) if callable(asked) else asked for s in structures]
        ids = padded([way.prompt(c) + way.augment(np.array(i), rng).tolist()
                      for c, i in zip(conditions, written, strict=True)])
        legal = way.masks(ids[:, :-1], conditions).gather(2, ids[:, way.prompt_length :, None])[..., 0]
        assert legal.all(), [structures[i].formula for i in (~legal.all(1)).nonzero()[:, 0].tolist()]


@every_way
def test_built_crystals_are_legal(way):
    assert_legal(list(CRYSTALS.values()), way)


def test_mp20_is_legal(mp20):
    assert_legal(mp20)


def legal_after(condition: dict, rest: list[int]) -> set[str]:
    mask = ATOMS.masks(torch.tensor([ATOMS.prompt(condition) + rest]), [condition])[0, -1]
    return {ATOMS.vocabulary[i] for i in mask.nonzero()[:, 0].tolist()}


HELIUM = tokens("He", "0/1008", "0/1008", "0/1008")
MAGNESIUM = tokens("Mg", "0/1008", "0/1008", "0/1008")


@pytest.mark.parametrize(
    ("condition", "rest", "expected"),
    [
        ({}, LATTICE + HELIUM, {"H", "He", "<eos>"}),  # falling atomic number
        ({"n_atoms": 2}, LATTICE + HELIUM, {"H", "He"}),  # not yet all atoms
        ({"n_atoms": 1}, LATTICE + HELIUM, {"<eos>"}),  # all of them
        ({"element": "H"}, LATTICE + HELIUM, {"H", "He"}),  # no end before what was asked for
        ({"element": "H", "n_atoms": 2}, LATTICE + HELIUM, {"H"}),  # the last chance
        ({"element": "He"}, LATTICE + HELIUM, {"H", "He", "<eos>"}),  # it is there already
        ({"element": "He", "n_atoms": 1}, LATTICE, {"He"}),
        ({}, LATTICE + HELIUM + END, {"<pad>"}),
        ({}, LATTICE + HELIUM + [*END, ATOMS.pad], {"<pad>"}),
        ({}, LATTICE[:1], {f"+{i}/20°" for i in range(20)}),
        ({}, tokens("150°"), {"+0/20°"}),  # nothing beyond 150°
        ({"formula": "HeH"}, LATTICE, {"He"}),  # the heavier one first
        ({"formula": "HeH"}, LATTICE + HELIUM, {"He", "H"}),
        ({"formula": "HeH", "n_atoms": 2}, LATTICE + HELIUM, {"H"}),
        ({"formula": "He"}, LATTICE + HELIUM, {"He", "<eos>"}),
        ({"elements": "He-B"}, LATTICE, {"He", "B"}),
        ({"elements": "He-B"}, LATTICE + HELIUM, {"He", "<eos>"}),
        ({"max_atoms": 1}, LATTICE + HELIUM, {"<eos>"}),
        ({"elements": "Na-F", "neutral": True, "n_atoms": 2}, LATTICE, {"Na"}),
        ({"elements": "Na-F", "neutral": True}, LATTICE + ATOM, {"Na", "F"}),
        ({"elements": "Mg-F", "neutral": True, "n_atoms": 3}, LATTICE + MAGNESIUM, {"F"}),
    ],
)
def test_the_grammar_by_hand(condition, rest, expected):
    assert legal_after(condition, rest) == expected


def test_no_element_lighter_than_the_one_that_is_owed():
    assert "Li" not in legal_after({"element": "C"}, LATTICE)
    assert {"C", "Og"} <= legal_after({"element": "C"}, LATTICE)


def test_the_longest_crystal_must_end():
    assert legal_after({}, LATTICE + HELIUM * 20) == {"<eos>"}


def test_gamma_always_makes_a_cell():
    rng = np.random.default_rng(0)
    edges = np.array([[30, 30], [30, 150], [150, 30], [150, 150], [90, 90], [60, 120], [119.95, 120], [149.95, 149.95]])
    pairs = np.concatenate([edges, rng.integers(600, 3001, (300, 2)) / 20])
    first, steps = ATOMS.first, np.rint(pairs * 20).astype(int)
    written = torch.tensor(np.stack([steps // 20 - 30 + first["degree"], steps % 20 + first["twentieth"]], -1))
    ids = torch.cat([torch.tensor(ATOMS.prompt({})).expand(len(pairs), -1), written.flatten(1)], 1)
    whole = ATOMS.masks(ids)[:, -1, first["degree"] : first["degree"] + 121]
    parts = torch.zeros(len(pairs), 121, 20, dtype=torch.bool)
    for degree in range(121):
        longer = torch.cat([ids, torch.full((len(pairs), 1), first["degree"] + degree)], 1)
        parts[:, degree] = ATOMS.masks(longer)[:, -1, first["twentieth"] : first["twentieth"] + 20]
    assert whole.any(1).all()
    assert (whole == parts.any(2)).all()  # no degree without a twentieth, and no cell left out by the degree

    gamma = (30 + np.arange(121)[:, None] + np.arange(20) / 20)[None]
    a, b = np.cos(np.radians(pairs))[:, :, None, None].transpose(1, 0, 2, 3)
    c = np.cos(np.radians(gamma))
    volume = 1 - a**2 - b**2 - c**2 + 2 * a * b * c  # (V / abc)²
    alpha, beta = pairs[:, 0, None, None], pairs[:, 1, None, None]
    room = np.minimum(gamma - np.abs(alpha - beta), np.minimum(alpha + beta, 360 - alpha - beta) - gamma)
    on_grid = gamma <= 150
    assert (volume[parts.numpy()] > 1e-5).all()
    assert parts.numpy()[(room > 2.001) & on_grid].all()  # and no cell that is not flat is forbidden


def test_a_cell_has_room_for_its_atoms():
    small = RIGHT + tokens("2Å", ".00Å", "2Å", ".00Å", "2Å", ".25Å")  # 9 Å³, three atoms of 3 Å³
    assert legal_after({}, small + HELIUM * 2) == {"H", "He", "<eos>"}
    assert legal_after({}, small + HELIUM * 3) == {"<eos>"}
    wide = RIGHT + tokens("3Å", ".00Å", "3Å", ".00Å")  # 20 atoms take 60 Å³
    assert min(legal_after({"n_atoms": 20}, wide), key=lambda name: int(name[:-1])) == "6Å"


def test_atoms_keep_their_distance():
    ids = LATTICE + HELIUM + tokens("He", "0/1008", "0/1008")
    apart = {f"{k}/1008" for k in range(1008) if 4 * min(k, 1008 - k) / 1008 >= MIN_DISTANCE}
    assert legal_after({}, ids) == apart
    assert len(legal_after({}, LATTICE + HELIUM + tokens("He", "500/1008", "0/1008"))) == 1008
    # Sodium has a radius of 1.66 Å: 0.6 of two of them is 1.992 Å of the 4 Å.
    sodium = tokens("Na", "0/1008", "0/1008")
    assert legal_after({}, LATTICE + sodium + tokens("0/1008") + sodium) == {f"{k}/1008" for k in range(502, 507)}


def test_what_is_too_large_for_a_cell_or_a_place():
    # A cell of 2.8 Å has no room for atoms of more than 2.33 Å; two of titanium (1.60 Å) leave no z for one another.
    thin = tokens("90°", "+0/20°", "90°", "+0/20°", "90°", "+0/20°", "2Å", ".80Å", "2Å", ".80Å", "2Å", ".80Å")
    legal = legal_after({}, thin)
    assert {"H", "O", "Ti", "Rb"} <= legal and not {"Cs", "Fr"} & legal
    narrow = tokens("90°", "+0/20°", "90°", "+0/20°", "90°", "+0/20°", "9Å", ".00Å", "9Å", ".00Å", "3Å", ".80Å")
    titanium = tokens("Ti", "0/1008", "0/1008")
    apart = {f"{k}/1008" for k in range(1008) if 3.8 * min(k, 1008 - k) / 1008 >= 0.6 * 2 * 1.60}
    assert not apart and len(legal_after({}, narrow + titanium + tokens("0/1008") + titanium)) == sum(
        3.8 * min(k, 1008 - k) / 1008 >= MIN_DISTANCE for k in range(1008))


# Species that must come out as asked


@pytest.mark.parametrize("order", [-1, 0, 1])
@pytest.mark.parametrize("exact", [0, 4])
@pytest.mark.parametrize("owed", [0, 9])
@pytest.mark.parametrize("charged", [False, True])
@pytest.mark.parametrize("asked", [Asked(elements=frozenset({3, 9, 22}), neutral=True),
                                   Asked(formula=((3, 1), (9, 1))),
                                   Asked(elements=frozenset({3, 9, 22}), required=frozenset({3, 9, 22})),
                                   Asked(elements=frozenset({3, 9, 22}), required=frozenset({3, 9}), neutral=True)],
                         ids=["neutral", "formula", "all", "neutral with two"])
def test_species_are_allowed_exactly_where_the_end_can_be_reached(order, exact, owed, charged, asked):
    """Against all compositions of up to four atoms, written out."""
    composer = Composer.of(charged, asked, exact, order)
    species, most = composer.species, 4
    begin, least = composer.start(most, owed)

    def whole(row: tuple[int, ...]) -> bool:
        z = [species.z[i] for i in row]
        if (exact and len(row) != exact) or (owed and owed not in z) or not row or not asked.required <= {*z}:
            return False
        if asked.formula:
            return z.count(3) == z.count(9)
        if not asked.neutral:
            return True
        total = Charges.none()
        for i in row:
            total = total.plus(species.charges[i])
        return total.closes

    rows = [row for n in range(most + 1) for row in product(composer.pool, repeat=n)
            if all((species.z[b] - species.z[a]) * order >= 0 for a, b in pairwise(row))]
    good = {row for row in rows if whole(row)}
    prefixes = {row[:n] for row in good for n in range(len(row) + 1)}
    longer = {row: {other for other in prefixes if len(other) > len(row) and other[:-1] == row} for row in prefixes}
    assert least == min(map(len, good))
    for row in prefixes:
        progress = begin
        for i in row:
            progress = composer.add(progress, i)
        places, ends = composer.next(progress)
        assert ends == (row in good)
        assert {(*row, i) for i in places} == longer[row]


@pytest.mark.parametrize(
    "condition",
    [{"formula": "Li20Fe"}, {"neutral": True, "elements": "Na-K"}, {"neutral": True, "elements": "Na-O", "n_atoms": 2},
     {"neutral": True, "chemical_system": "Na-O", "max_atoms": 2},
     {"element": "-".join(Element.from_Z(z).symbol for z in range(1, 22))}],
)
def test_what_no_composition_has_is_the_users_mistake(condition):
    with pytest.raises(UserError, match=r"no .*crystal of"):
        ATOMS.start(torch.tensor([ATOMS.prompt(condition)]), [condition])


# Rollouts

FORMULAS = ("NaCl", "LiFePO4", "SiO2", "Ca2FeO5", "Fe3O4", "BaTiO3", "Si", "MgAl2O4")


def hard_conditions(way: Atoms, n: int, rng: np.random.Generator) -> list[dict]:
    """Random conditions with all kinds of hard ones among them, those that can be met."""
    found = []
    for condition in random_conditions(n, rng, keep=0.4):
        formula, elements, most, neutral = rng.random(4) < (0.3, 0.5, 0.4, 0.5)
        if formula:
            condition = {"formula": str(rng.choice(FORMULAS))}
            if rng.random() < 0.5:
                condition["n_atoms"] = int(Composition(condition["formula"]).num_atoms * rng.integers(1, 3))
        elif elements:
            chosen = [Element.from_Z(int(z)).symbol for z in rng.choice(np.arange(1, 100), 4, replace=False)]
            condition["elements"] = "-".join(chosen + [condition[key] for key in ("element",) if key in condition])
            if rng.random() < 0.5:
                condition["element"] = "-".join(rng.permutation(condition["elements"].split("-"))[:3])
        elif rng.random() < 0.5:
            condition["chemical_system"] = "-".join(rng.choice(["Li", "Fe", "Ti", "O", "F", "Na"], 3, replace=False))
            condition.pop("element", None)
        if most:
            condition["max_atoms"] = int(rng.integers(condition.get("n_atoms", 1), 21))
        if neutral:
            condition["neutral"] = True
        try:
            way.start(torch.tensor([way.prompt(condition)]), [condition])
            found.append(condition)
        except UserError:
            continue
    return found


def assert_as_asked(way: Atoms, asked: dict, crystal: Structure, ids: list[int]) -> None:
    assert isinstance(crystal, Structure), crystal
    assert asked.get("n_atoms", len(crystal)) == len(crystal) <= asked.get("max_atoms", 20)
    assert all(COMPOSITION[key](crystal, value) for key, value in asked.items() if key in COMPOSITION)
    if asked.get("neutral") and way.oxidation:
        places = [i - way.first["species"] for i in ids]
        assert sum(way.species.states[i] for i in places if 0 <= i < way.sizes["species"]) == 0
    elif asked.get("neutral"):
        assert can_be_neutral(Counter(crystal.atomic_numbers))
    z = np.array(crystal.atomic_numbers)
    assert (np.diff(z) * ORDERS[way.order] >= 0).all()


@every_way
def test_conditions_are_always_met(way):
    policy = random_policy(way, seed=1)
    conditions = hard_conditions(way, 40, np.random.default_rng(2))
    rollout = sample(policy, conditions, torch.Generator().manual_seed(0))
    rows = rollout.ids.tolist()
    for asked, crystal, ids in zip(conditions, decode(policy, rollout), rows, strict=True):
        assert_as_asked(way, asked, crystal, ids)
    again, _ = policy.token_logprobs(rollout.ids, rollout.temperature, conditions)
    assert (rollout.logprobs - again)[rollout.mask].abs().max() < 1e-4


def closest(matrix: np.ndarray, frac: np.ndarray) -> float:
    """The shortest distance (Å) between two atoms, all images within one cell counted."""
    images = np.array(list(product((-1, 0, 1), repeat=3)))
    difference = frac[:, None] - frac
    difference = difference - np.round(difference)
    d = np.linalg.norm((difference[:, :, None] + images) @ matrix, axis=-1).min(-1)
    return float(d[np.triu_indices(len(frac), 1)].min(initial=np.inf))


def test_all_that_a_random_policy_writes_can_be_read():
    conditions = random_conditions(1200, np.random.default_rng(0))
    policy = tiny_policy(sharpness=1.0)
    crystals = decode(policy, sample(policy, conditions, torch.Generator().manual_seed(0), batch=500))
    for asked, crystal in zip(conditions, crystals, strict=True):
        assert isinstance(crystal, Structure), crystal
        assert len(crystal) == asked.get("n_atoms", len(crystal)) <= 20
        assert asked.get("element", crystal.species[0].symbol) in crystal.symbol_set
        assert crystal.volume > 0
        assert closest(crystal.lattice.matrix, crystal.frac_coords) >= MIN_DISTANCE - 1e-3
    assert {len(c) for c, asked in zip(crystals, conditions, strict=True) if "n_atoms" not in asked} > {1, 2, 3, 4}


def test_atoms_find_room_in_the_smallest_cells():
    """Random legal tokens, the shortest of the lengths and 20 atoms: as crowded as the grammar allows."""
    rng, rows = torch.Generator().manual_seed(0), 200
    state = ATOMS.start(torch.tensor([ATOMS.prompt({"n_atoms": 20})] * rows))
    columns = []
    for t in range(12 + 80):
        weights = state.legal().double()
        if 6 <= t < 12:
            weights *= torch.exp(-weights.cumsum(1) / 2)  # mostly the first ones
        columns.append(torch.multinomial(weights, 1, generator=rng)[:, 0])
        state.advance(columns[-1])
    crystals = [ATOMS.decode_arrays([*row, *END]) for row in torch.stack(columns, 1).tolist()]
    volumes = np.array([abs(np.linalg.det(matrix)) for matrix, _, _ in crystals])
    apart = np.array([closest(matrix, frac) for matrix, frac, _ in crystals])
    assert (volumes >= 60).all() and np.median(volumes) < 120
    assert (apart >= MIN_DISTANCE - 1e-3).all()
