"""The atoms representation: one string for all descriptions of a crystal, and every string read back as written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CRYSTALS, random_conditions, tiny_policy
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from policies.representations import make
from policies.representations.canonical import canonical_cell, random_equivalent
from policies.representations.quantiser import (
    MAX_ANGLE,
    MIN_ANGLE,
    Q,
    lattice_parameters,
    quantise_coordinates,
    quantise_lattice,
)
from policies.sampler import decode, sample
from rlgen.types import CrystalError, UserError

ATOMS = make("atoms", max_atoms=20)
SYMPREC = 0.01  # Å


def token(name: str) -> int:
    return ATOMS.vocabulary.index(name)


def tokens(*names: str) -> list[int]:
    return [token(name) for name in names]


def group_of(structure: Structure) -> int:
    return structure.get_space_group_info(SYMPREC)[1]


# Writing and reading


def test_rock_salt_is_written_as_by_hand():
    # The primitive cell: a = 5.64 / sqrt(2) = 3.988 Å and 60°. Cl is the heavier one; Na, as rare and lighter, is the
    # origin; the other atom is in the middle.
    length, angle = ("3Å", ".99Å"), ("60°", "+0/20°")
    expected = tokens(*length * 3, *angle * 3, "Cl", *["504/1008"] * 3, "Na", *["0/1008"] * 3, "<eos>")
    assert ATOMS.encode(CRYSTALS["rock salt"]) == expected


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
    # 91 % of 2,100 MP-20 crystals: half a step of the grid is 0.005 Å, half of this tolerance.
    assert np.mean([group_of(a) == group_of(b) for a, b in zip(mp20, back, strict=True)]) >= 0.9


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

LATTICE = tokens(*("4Å", ".00Å") * 3, *("90°", "+0/20°") * 3)
ATOM = tokens("Na", "0/1008", "0/1008", "0/1008")
FLAT = tokens(*("4Å", ".00Å") * 3, "60°", "+0/20°", "60°", "+0/20°", "120°", "+0/20°")
END = [ATOMS.eos]


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
        (LATTICE[1:] + LATTICE[:1] + ATOM + END, "parse", "where a length belongs"),
        (LATTICE + ATOM[::-1] + END, "parse", "where a element belongs"),
        (LATTICE + tokens("Na", "0/1008", "Cl", "0/1008") + END, "parse", "Cl where a coordinate belongs"),
        (LATTICE + tokens("element?") + ATOM[1:] + END, "parse", "no element"),
        ([*LATTICE, 10**6, *ATOM[1:], *END], "parse", "1000000 where"),
        ([*LATTICE, -1, *ATOM[1:], *END], "parse", "-1 where"),
        (FLAT + ATOM + END, "geometry", "no cell has the angles"),
        (LATTICE[:6] + tokens(*("150°", "+0/20°") * 3) + ATOM + END, "geometry", "no cell has the angles"),
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


def truths(structure: Structure) -> dict:
    return {
        "space_group": group_of(structure),
        "n_atoms": len(ATOMS.decode(ATOMS.encode(structure))),
        "element": structure.species[0].symbol,
    }


def some_sequences(rng: np.random.Generator) -> torch.Tensor:
    """Every built crystal under a random part of its own prompt."""
    rows = []
    for structure in CRYSTALS.values():
        asked = {k: v for k, v in truths(structure).items() if rng.random() < 0.6}
        rows.append(ATOMS.prompt(asked) + ATOMS.encode(structure))
    return padded(rows)


def test_the_mask_of_a_prefix_is_a_column_of_the_whole_mask():
    ids = some_sequences(np.random.default_rng(0))
    whole = ATOMS.grammar.mask(ids)
    assert whole.shape == (*ids.shape, len(ATOMS.vocabulary))
    for t in range(1, ids.shape[1] + 1):
        assert (ATOMS.grammar.mask(ids[:, :t]) == whole[:, :t]).all()
        assert (ATOMS.grammar.mask(ids[:, :t], t - 1)[:, 0] == whole[:, t - 1]).all()


def test_every_place_has_a_legal_token():
    ids = some_sequences(np.random.default_rng(1))
    assert ATOMS.grammar.mask(ids).any(-1).all()


def assert_legal(structures: list[Structure]) -> None:
    """Each crystal's own sequence is legal under all of its prompt and under nothing asked."""
    for asked in (truths, lambda structure: {}):
        ids = padded([ATOMS.prompt(asked(s)) + ATOMS.encode(s) for s in structures])
        legal = ATOMS.grammar.mask(ids[:, :-1]).gather(2, ids[:, 1:, None])[..., 0]
        assert legal.all(), [structures[i].formula for i in (~legal.all(1)).nonzero()[:, 0].tolist()]


def test_built_crystals_are_legal():
    assert_legal(list(CRYSTALS.values()))


def test_mp20_is_legal(mp20):
    assert_legal(mp20)


def legal_after(condition: dict, rest: list[int]) -> set[str]:
    mask = ATOMS.grammar.mask(torch.tensor([ATOMS.prompt(condition) + rest]))[0, -1]
    return {ATOMS.vocabulary[i] for i in mask.nonzero()[:, 0].tolist()}


HELIUM = tokens("He", "0/1008", "0/1008", "0/1008")


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
        ({}, LATTICE[:7], {f"+{i}/20°" for i in range(20)}),
        ({}, LATTICE[:6] + tokens("150°"), {"+0/20°"}),  # nothing beyond 150°
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
    ids = torch.cat([torch.tensor(ATOMS.prompt({}) + LATTICE[:6]).expand(len(pairs), -1), written.flatten(1)], 1)
    whole = ATOMS.grammar.mask(ids)[:, -1, first["degree"] : first["degree"] + 121]
    parts = torch.zeros(len(pairs), 121, 20, dtype=torch.bool)
    for degree in range(121):
        longer = torch.cat([ids, torch.full((len(pairs), 1), first["degree"] + degree)], 1)
        parts[:, degree] = ATOMS.grammar.mask(longer)[:, -1, first["twentieth"] : first["twentieth"] + 20]
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


def test_all_that_a_random_policy_writes_can_be_read():
    conditions = random_conditions(2000, np.random.default_rng(0))
    policy = tiny_policy(sharpness=1.0)
    crystals = decode(policy, sample(policy, conditions, torch.Generator().manual_seed(0), batch=500))
    for asked, crystal in zip(conditions, crystals, strict=True):
        assert isinstance(crystal, Structure), crystal
        assert len(crystal) == asked.get("n_atoms", len(crystal)) <= 20
        assert asked.get("element", crystal.species[0].symbol) in crystal.symbol_set
        assert crystal.volume > 0
    assert {len(c) for c, asked in zip(crystals, conditions, strict=True) if "n_atoms" not in asked} > {1, 2, 3, 4}
