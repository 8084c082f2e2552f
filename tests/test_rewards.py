"""The table of rewards, and validity, novelty and uniqueness against crystals whose answer is known."""

import os
import subprocess
import sys
import time
from dataclasses import FrozenInstanceError
from functools import cache

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

import rewards
from rewards.validity import Validity, distance_below
from rlgen.spacegroup import from_spacegroup
from rlgen.types import UserError


def crystals_of_the_textbook() -> dict[str, Structure]:
    """Built anew, as some tests change them."""
    return {name: crystal.copy() for name, crystal in _textbook().items()}


@cache
def _textbook() -> dict[str, Structure]:
    def group(number, lattice, species, sites):
        return from_spacegroup(number, lattice, species, sites)

    halves = [[0, 0, 0], [0.5, 0.5, 0.5]]
    return {
        "NaCl": group(225, Lattice.cubic(5.64), ["Na", "Cl"], halves),
        "TiO2": group(136, Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]),
        "SrTiO3": group(221, Lattice.cubic(3.905), ["Sr", "Ti", "O"], [*halves, [0.5, 0.5, 0]]),
        "C": group(227, Lattice.cubic(3.567), ["C"], [[0, 0, 0]]),
        "Fe": Structure(Lattice([[-1.43, 1.43, 1.43], [1.43, -1.43, 1.43], [1.43, 1.43, -1.43]]), ["Fe"], [[0, 0, 0]]),
        "Os": group(194, Lattice.hexagonal(2.734, 4.317), ["Os"], [[1 / 3, 2 / 3, 0.25]]),
        "Cs": group(229, Lattice.cubic(6.141), ["Cs"], [[0, 0, 0]]),
        "LiH": group(225, Lattice.cubic(4.08), ["Li", "H"], halves),
        # Molecules: H2 has the shortest bond there is (0.74 Å), and the least density.
        "H2": Structure(Lattice.cubic(4.0), ["H", "H"], [[0, 0, 0], [0.185, 0, 0]]),
    }


NACL = crystals_of_the_textbook()["NaCl"]


@pytest.mark.parametrize("name", crystals_of_the_textbook())
def test_real_crystals_are_valid(name):
    crystal = crystals_of_the_textbook()[name]
    assert Validity().check(crystal) == ""
    # Also in a badly chosen cell, which makes them thin along a vector.
    crystal.make_supercell([[1, 0, 0], [9, 1, 0], [0, 7, 1]])
    assert Validity().check(crystal) == ""


def test_mp20_is_valid():
    if not os.environ.get("RLGEN_DATA"):
        pytest.skip("needs MP-20 ($RLGEN_DATA)")
    from rlgen.data import load

    crystals = [record.structure for record in load("mp20", limit=500)]
    assert {Validity().check(s) for s in crystals} == {""}


@pytest.mark.parametrize(
    ("crystal", "reason"),
    [
        (Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0, 0, 0]]), "0.00 Å apart"),
        (Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.1, 0, 0]]), "0.40 Å apart"),
        (Structure(Lattice.cubic(4), ["Na", "Cl"], [[0.98, 0, 0], [0.04, 0, 0]]), "0.24 Å apart"),  # through the wall
        (Structure(Lattice.cubic(4), ["Na", "Cl"], [[7.98, 0, 0], [-3.96, 0, 0]]), "0.24 Å apart"),
        (Structure(Lattice.orthorhombic(0.4, 9, 9), ["Na"], [[0, 0, 0]]), "0.40 Å apart"),  # its own image
        (Structure(Lattice([[5, 0, 0], [5, 0.3, 0], [0, 0, 40]]), ["Na"], [[0, 0, 0]]), "0.30 Å apart"),  # b - a
        (Structure(Lattice([[5, 0, 0], [4.8, 3, 0], [9.8, 3.3, 30]]), ["Na"] * 2, [[0, 0, 0], [0.94, 0, 0]]), "0.30 Å"),
        (Structure(np.zeros((3, 3)), ["Na"], [[0, 0, 0]]), "volume per atom"),
        (Structure([[3, 0, 0], [0, 3, 0], [3, 3, 0]], ["Na"], [[0, 0, 0]]), "volume per atom"),
        (Structure(Lattice.cubic(1.3), ["Na"], [[0, 0, 0]]), "volume per atom"),
        (Structure(Lattice.cubic(8), ["Na"], [[0, 0, 0]]), "volume per atom"),
        (Structure(Lattice.cubic(2), ["U"], [[0, 0, 0]]), "density"),
        (Structure(np.full((3, 3), np.nan), ["Na"], [[0, 0, 0]]), "not finite"),
        (Structure(Lattice.cubic(3), ["Na"], [[0, np.inf, 0]]), "not finite"),
        (Structure(Lattice.orthorhombic(3, 3, 300), ["Na"], [[0, 0, 0]]), "300 Å, over 200"),
        (Structure(Lattice.cubic(3), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]), "disordered"),
        (Structure(Lattice.cubic(3), [], []), "no atoms"),
    ],
)
def test_adversarial_crystals_are_not(crystal, reason):
    assert reason in Validity().check(crystal)
    assert Validity().measure([crystal, NACL], [{}, {}]).tolist() == [0.0, 1.0]


def test_large_cells_hide_nothing():
    """150 Å: the search looks further than it is asked to, and only what is near enough counts."""
    x = np.array([[0, 0, 0], [149.8, 0, 0], [70, 70, 70], [70, 70, 70.6]]) / 150
    crystal = Structure(Lattice.cubic(150), ["Na"] * 4, x)
    assert distance_below(crystal, 0.5) == pytest.approx(0.2)
    assert distance_below(crystal, 0.1) is None
    assert distance_below(Structure.from_sites(crystal.sites[2:]), 0.5) is None


def test_distances_agree_with_pymatgen():
    rng = np.random.default_rng(0)
    for _ in range(60):
        n = int(rng.integers(1, 7))
        crystal = Structure(rng.normal(size=(3, 3)) * 3 + np.eye(3) * 2, ["H"] * n, rng.random((n, 3)))
        reduced = crystal.get_reduced_structure(reduction_algo="LLL")
        near = reduced.get_all_neighbors(0.9)
        check = Validity(min_distance=0.9, volume_per_atom=(0.05, 1e4), density=(0, 1e3)).check(crystal)
        distances = {f"atoms {x.nn_distance:.2f} Å apart, under 0.9 Å" for site in near for x in site}
        assert check in (distances or {""})


def test_validity_parameters():
    assert "2.82 Å apart" in rewards.make("validity", min_distance=3.0).check(NACL)


def test_validity_is_fast_enough_for_every_sample():
    crystal = crystals_of_the_textbook()["NaCl"]
    check = Validity().check
    check(crystal)
    started = time.perf_counter()
    for _ in range(200):
        check(crystal)
    assert (time.perf_counter() - started) / 200 < 2e-3  # 0.1 ms on an idle core; the margin is for a busy one


def test_uniqueness_shares_one_reward():
    everything = crystals_of_the_textbook()
    turned = NACL.copy()
    turned.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]])
    batch = [NACL, everything["TiO2"], turned, NACL, everything["C"]]
    for matcher in (True, False):
        reward = rewards.make("uniqueness", matcher=matcher)
        raw = reward.measure(batch, [{}] * 5)
        np.testing.assert_array_equal(raw, [3, 1, 3, 3, 1])
        np.testing.assert_allclose(reward.transform(raw), [1 / 3, 1, 1 / 3, 1 / 3, 1])
    assert rewards.make("uniqueness").measure([], []).shape == (0,)
    assert np.isnan(rewards.make("uniqueness").transform(np.array([np.nan]))).all()


def test_novelty():
    if not os.environ.get("RLGEN_DATA"):
        pytest.skip("needs MP-20 ($RLGEN_DATA)")
    from rlgen.data import load

    known = [record.structure for record in load("mp20", limit=40).splits["train"]]
    strange = from_spacegroup(225, Lattice.cubic(5), ["Xe", "Au"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    no_symmetry = Structure(Lattice.cubic(3), ["Fe", "O"], [[0, 0, 0], [0, 0, 0]])
    reward = rewards.make("novelty")
    raw, reasons = reward.measure_with_reasons([*known, strange, no_symmetry], [{}] * 42)
    np.testing.assert_array_equal(raw, [0] * 40 + [1, np.nan])
    assert reasons == [""] * 41 + ["symmetry could not be determined"]
    np.testing.assert_array_equal(reward.transform(raw), raw)


def test_spread_of_copies_is_0_and_of_crystals_with_nothing_in_common_1():
    spread = rewards.make("spread")
    np.testing.assert_allclose(spread.measure([NACL] * 5, [{}] * 5), 0, atol=1e-12)
    unlike = [crystals_of_the_textbook()[name] for name in ("C", "Fe", "Os", "TiO2", "SrTiO3")]
    raw = spread.measure(unlike, [{}] * 5)
    np.testing.assert_allclose(raw[:3], 1)  # TiO2 and SrTiO3 share elements
    overlap = min(1 / 3, 1 / 5) + min(2 / 3, 3 / 5)
    np.testing.assert_allclose(raw[3:], -np.log((1 + overlap / 2) / 5) / np.log(5))
    np.testing.assert_array_equal(spread.transform(raw), raw)
    assert spread.measure([NACL], [{}]).tolist() == [1] and spread.measure([], []).shape == (0,)


def test_spread_sees_the_trap_of_one_prototype_with_ever_other_elements():
    """All novel, all unique, and all rock salt: half of the similarity is left."""
    pairs = [("Na", "Cl"), ("Mg", "O"), ("Ag", "Br"), ("K", "I")]
    halves = [[0, 0, 0], [0.5, 0.5, 0.5]]
    trap = [from_spacegroup(225, Lattice.cubic(5), pair, halves) for pair in pairs]
    expected = -np.log((1 + 3 * 0.5) / 4) / np.log(4)
    np.testing.assert_allclose(rewards.make("spread").measure(trap, [{}] * 4), expected)
    np.testing.assert_allclose(rewards.make("spread", chemistry=1).measure(trap, [{}] * 4), 1)
    np.testing.assert_allclose(rewards.make("spread", chemistry=0).measure(trap, [{}] * 4), 0, atol=1e-12)
    # One that is built otherwise earns more than the crowd, and the crowd more for it.
    raw = rewards.make("spread").measure([*trap[:3], crystals_of_the_textbook()["Os"]], [{}] * 4)
    assert raw[3] == 1 and (raw[:3] > expected).all()


def test_spread_of_a_batch_of_mp20_is_far_above_that_of_rock_salts(mp20):
    real = rewards.make("spread").measure(mp20[:128], [{}] * 128)
    assert 0.6 < real.mean() < 0.7
    assert real.min() > -np.log((1 + 127 / 2) / 128) / np.log(128) == pytest.approx(0.141, abs=1e-3)


def test_spread_of_crystals_without_symmetry_is_not_measured():
    nothing = Structure(Lattice.cubic(3), ["Fe", "O"], [[0, 0, 0], [0, 0, 0]])
    raw, reasons = rewards.make("spread").measure_with_reasons([NACL, nothing, NACL], [{}] * 3)
    np.testing.assert_array_equal(raw, [0, np.nan, 0])
    assert reasons == ["", "symmetry could not be determined", ""]
    with pytest.raises(UserError, match="between 0 and 1"):
        rewards.make("spread", chemistry=2)


def test_make():
    for name in ("validity", "novelty", "uniqueness", "spread"):
        reward = rewards.make(name)
        assert reward.name == name and isinstance(reward, rewards.Reward)
        with pytest.raises(FrozenInstanceError):
            reward.anything = 1
    assert rewards.make("toy_rewards:Length", nan_for="U").nan_for == "U"


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("novelti", {}, "known are condition, formation, novelty, spread, stability, uniqueness, validity"),
        ("novelty", {"refrence": "x"}, "no parameter refrence; it has reference"),
        ("no_such_module:Reward", {}, "cannot be imported"),
        ("toy_rewards:NoSuchClass", {}, "cannot be imported"),
        ("pathlib:Path", {}, "no dataclass"),
        ("rlgen.types:RewardBreakdown", {}, "has no name, unit, per_sample, measure, transform"),
    ],
)
def test_make_explains_mistakes(name, params, message):
    with pytest.raises(UserError, match=message):
        rewards.make(name, **params)


def test_import_is_instant():
    code = "import sys, rewards; assert not {'pymatgen', 'torch', 'ray', 'matgl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
