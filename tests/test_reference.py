"""Labels do not depend on how a crystal is described; known crystals stay known; duplicates are found."""

import os
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from rlgen.crystal_index import formula_key
from rlgen.protostructure import UNLABELLED
from rlgen.reference import Matcher, Reference, duplicate_groups, protostructure_label
from rlgen.spacegroup import from_spacegroup
from rlgen.types import UserError

CUBIC = from_spacegroup
ROCKSALT = CUBIC(225, Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
RUTILE = CUBIC(136, Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]])
PEROVSKITE = CUBIC(221, Lattice.cubic(3.905), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]])
QUARTZ = CUBIC(154, Lattice.hexagonal(4.913, 5.405), ["Si", "O"], [[0.470, 0, 2 / 3], [0.413, 0.267, 0.786]])
WURTZITE = CUBIC(186, Lattice.hexagonal(3.25, 5.2), ["Zn", "O"], [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.382]])
TEXTBOOK = [ROCKSALT, RUTILE, PEROVSKITE, QUARTZ, WURTZITE]


def redescribe(crystal: Structure, rng: np.random.Generator, noise: float = 0.0, mirror: bool = False) -> Structure:
    """The same crystal in another cell (sheared and perhaps doubled), turned, moved, with its atoms in another order.

    noise: Å, standard deviation of each coordinate.
    """
    cell = np.eye(3, dtype=int)
    cell[0, 1], cell[2, 0] = rng.integers(-1, 2, 2)
    cell[rng.integers(3)] *= rng.integers(1, 3)
    other = crystal.copy()
    other.make_supercell(cell)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn)) * (-1 if mirror else 1)
    order = rng.permutation(len(other))
    cart = other.cart_coords[order] + rng.normal(size=(len(other), 3)) * noise
    moved = (cart + rng.random(3) * 5) @ turn
    return Structure(other.lattice.matrix @ turn, [other.species[i] for i in order], moved, coords_are_cartesian=True)


def mp20(count: int) -> list[Structure]:
    if not os.environ.get("RLGEN_DATA"):
        pytest.skip("needs MP-20 ($RLGEN_DATA)")
    from rlgen.data import load

    return [record.structure for record in load("mp20", limit=count).splits["train"]]


@pytest.mark.parametrize("crystal", TEXTBOOK, ids=lambda s: s.reduced_formula)
def test_label_of_every_description(crystal):
    rng = np.random.default_rng(0)
    label = protostructure_label(crystal)
    for k in range(8):
        assert protostructure_label(redescribe(crystal, rng, noise=0.003, mirror=k % 2 == 1)) == label


def test_labels_known_from_the_literature():
    assert protostructure_label(ROCKSALT) == "AB_cF8_225_a_b:Cl-Na"
    assert protostructure_label(RUTILE) == "A2B_tP6_136_f_a:O-Ti"
    assert protostructure_label(PEROVSKITE) == "A3BC_cP5_221_c_a_b:O-Sr-Ti"
    assert protostructure_label(QUARTZ).startswith("A2B_hP9_152_")  # the mirror image of 154


def test_label_tells_chemistries_and_polymorphs_apart():
    potassium = ROCKSALT.copy()
    potassium.replace_species({"Na": "K"})
    caesium_chloride = CUBIC(221, Lattice.cubic(3.4), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert len({protostructure_label(s) for s in (ROCKSALT, potassium, caesium_chloride)}) == 3


def test_label_ignores_oxidation_states_and_volume():
    charged = ROCKSALT.copy()
    charged.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    charged.scale_lattice(200)
    assert protostructure_label(charged) == protostructure_label(ROCKSALT)


def test_label_never_raises():
    assert protostructure_label(Structure(Lattice.cubic(3), ["Fe", "O"], [[0, 0, 0], [0, 0, 0]])) == "FeO" + UNLABELLED
    for lattice in (np.eye(3) * 1e-9, np.ones((3, 3)), np.full((3, 3), np.nan)):
        assert isinstance(protostructure_label(Structure(lattice, ["Fe"], [[0, 0, 0]])), str)


def test_formula_key_is_reduced():
    assert formula_key([11, 17] * 4) == formula_key([17, 11]) == formula_key(np.array([17, 11], dtype=np.uint8))
    assert formula_key([8, 8, 22]) != formula_key([8, 22])


def test_shipped_reference():
    train, everything = Reference.load("shipped:train"), Reference.load("shipped:all")
    assert train.labels < everything.labels and 20_000 < train.size < everything.size
    assert "protostructure labels" in train.method and "training set" in train.method
    assert Reference.load("shipped:train") is train
    strange = CUBIC(225, Lattice.cubic(5.0), ["Xe", "Au"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert not everything.contains(strange)
    with pytest.raises(UserError, match="shipped:all"):
        Reference.load("shipped:val")


def test_undetermined_symmetry_is_never_new():
    reference = Reference.load("shipped:train")
    two_in_one_place = Structure(Lattice.cubic(3), ["Fe", "O"], [[0, 0, 0], [0, 0, 0]])
    assert reference.known(two_in_one_place) is None and reference.contains(two_in_one_place)


def test_training_crystals_are_known_however_described():
    crystals = mp20(150)
    reference = Reference.load("shipped:train")
    rng = np.random.default_rng(0)
    assert all(reference.contains(s) for s in crystals)
    assert np.mean([reference.contains(redescribe(s, rng, 0.0)) for s in crystals]) == 1
    assert np.mean([reference.contains(redescribe(s, rng, 0.01, mirror=True)) for s in crystals]) >= 0.98


def test_reference_from_a_folder_is_confirmed_by_the_matcher(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("RLGEN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "known"
    folder.mkdir()
    for crystal in TEXTBOOK:
        crystal.to(str(folder / f"{crystal.reduced_formula}.cif"))
    reference = Reference.load(str(folder))
    assert "StructureMatcher" in reference.method and reference.size == 5
    rng = np.random.default_rng(1)
    for crystal in TEXTBOOK:
        assert reference.contains(redescribe(crystal, rng, 0.02, mirror=True))
    distorted = PEROVSKITE.copy()
    distorted.apply_strain([0.03, 0, 0])
    assert reference.contains(distorted)
    polymorph = CUBIC(221, Lattice.cubic(3.4), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    other_chemistry = ROCKSALT.copy()
    other_chemistry.replace_species({"Na": "K"})
    assert not reference.contains(polymorph) and not reference.contains(other_chemistry)
    with pytest.raises(UserError):
        Reference.load(str(tmp_path / "nowhere"))


def test_duplicate_groups():
    rng = np.random.default_rng(2)
    crystals = [ROCKSALT, RUTILE, redescribe(ROCKSALT, rng, 0.03), QUARTZ, redescribe(QUARTZ, rng, mirror=True), RUTILE]
    for matcher in (True, False):
        noisy = crystals if matcher else [ROCKSALT, *crystals[1:2], redescribe(ROCKSALT, rng, 0.005), *crystals[3:]]
        assert duplicate_groups(noisy, matcher=matcher).tolist() == [0, 1, 0, 2, 2, 1]
    strained = ROCKSALT.copy()
    strained.apply_strain([0.04, 0, 0])
    assert duplicate_groups([ROCKSALT, strained]).tolist() == [0, 0]
    assert duplicate_groups([ROCKSALT, strained], matcher=False).tolist() == [0, 1]
    assert duplicate_groups([]).shape == (0,)


def test_groups_agree_with_pymatgen_on_real_crystals():
    from pymatgen.analysis.structure_matcher import StructureMatcher

    rng = np.random.default_rng(3)
    crystals = mp20(60)
    both = crystals + [redescribe(s, rng, 0.02) for s in crystals[:20]]
    groups = duplicate_groups(both)
    matcher = StructureMatcher()
    expected = {i: k for k, group in enumerate(matcher.group_structures(both)) for i in map(both.index, group)}
    pairs = [(i, j) for i in range(len(both)) for j in range(i)]
    assert all((groups[i] == groups[j]) == (expected[i] == expected[j]) for i, j in pairs)


def test_reduced_cells_compare_as_whole_ones():
    rng = np.random.default_rng(4)
    compare = Matcher()
    for crystal in TEXTBOOK:
        assert compare.same(compare.reduce(crystal), compare.reduce(redescribe(crystal, rng, 0.02)))
