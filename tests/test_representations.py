"""What holds for every way of writing: hands, processes, crystals of 200 atoms, and the ways that are parameters."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CRYSTALS
from pymatgen.core import Lattice, Structure

from policies.model import CrystalPolicy
from policies.representations import REPRESENTATIONS, make
from policies.representations.base import Representation
from policies.sampler import decode, sample
from rlgen.spacegroup import from_spacegroup
from rlgen.types import CrystalError, UserError

#: The ways that are parameters, besides the defaults.
PUBLISHED = {"orbits": {"order": "published"}, "invariant": {"numbers": "digits"}}


def legal(rep: Representation, crystals: list[Structure]) -> list[bool]:
    """Whether the grammar allows every token of each."""
    found = []
    for crystal in crystals:
        ids = torch.tensor([[*rep.prompt({}), *rep.encode(crystal)]])
        answer = ids[:, rep.prompt_length :, None]
        found.append(bool(rep.masks(ids[:, :-1]).gather(2, answer).all()))
    return found


def large() -> Structure:
    """200 atoms in the primitive cell of P -1, with a place of 3 Å width for each."""
    rng = np.random.default_rng(0)
    spots = np.array([(x, y, z) for x in range(5) for y in range(5) for z in range(8)])
    frac = (spots + 0.3 + 0.3 * rng.random((200, 3))) / [5, 5, 8]
    lattice = Lattice.from_parameters(15.3, 16.1, 24.7, 84, 95, 101)
    kinds = np.array(["Li", "O", "Fe", "P", "Na"])[rng.integers(5, size=200)]
    half = spots[:, 2] < 4
    return Structure(lattice, [*kinds[half], *kinds[half]], np.concatenate([frac[half], -frac[half]]))


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_a_crystal_of_200_atoms_comes_back_and_is_legal(name):
    rep, crystal = make(name), large()
    ids = rep.encode(crystal)
    back = rep.decode(ids)
    assert back.composition == crystal.composition and len(back) == 200
    assert len(ids) + rep.prompt_length <= rep.max_length
    assert rep.encode(back) == ids or name == "text"  # whose three decimals can have another canonical form
    assert legal(rep, [crystal]) == [True]


@pytest.mark.parametrize("name", REPRESENTATIONS)
@pytest.mark.parametrize(("group", "mirrored"), [("P4_1", 78), ("P4_122", 95), ("P6_1", 170), ("P4_132", 212)])
def test_enantiomorphs_are_written_differently_and_keep_their_hand(name, group, mirrored):
    lattices = {"P6_1": Lattice.hexagonal(6.1, 11.3), "P4_132": Lattice.cubic(11.3)}
    cell = lattices.get(group, Lattice.tetragonal(6.1, 11.3))
    right = from_spacegroup(group, cell, ["Na", "Cl"], [[0.11, 0.23, 0.02], [0.37, 0.58, 0.31]])
    left = Structure(cell, right.species, -right.frac_coords)
    rep = make(name)
    written = [rep.encode(s) for s in (right, left)]
    assert written[0] != written[1]
    symprec = 0.1 if name == "text" else 0.01  # three decimals do not hold a third
    assert [rep.decode(ids).get_space_group_info(symprec)[1] for ids in written] == [
        right.get_space_group_info()[1], mirrored]


def written(names: list[str]) -> list[list[list[int]]]:
    """What each representation writes of another description of every built crystal."""
    rng = np.random.default_rng(0)
    others = [make(names[0]).random_equivalent(s, rng) for s in CRYSTALS.values()]
    return [[make(name).encode(s) for s in others] for name in names]


def test_every_process_and_blas_writes_the_same():
    # Other threads, another order of sets, and OpenBLAS's routines for processors of 2004.
    code = f"import json, test_representations as t; print(json.dumps(t.written({[*REPRESENTATIONS]})))"
    other = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Prescott",
             "PYTHONHASHSEED": "7"}
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    found = subprocess.run([sys.executable, "-c", code], env=os.environ | other | {"PYTHONPATH": paths},
                           capture_output=True, text=True, check=True).stdout
    assert json.loads(found) == written([*REPRESENTATIONS])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_ways_bring_crystals_back(name, crystal):
    rep = make(name, max_atoms=20, **PUBLISHED[name])
    ids = rep.encode(crystal)
    plain = make(name, max_atoms=20)
    # The same crystal to the last digit as in the default way.
    assert rep.decode(ids).matches(plain.decode(plain.encode(crystal)), ltol=1e-6, stol=1e-6, angle_tol=1e-6)
    assert rep.encode(rep.decode(ids)) == ids and rep.written_group(ids) == plain.written_group(plain.encode(crystal))
    assert legal(rep, [crystal]) == [True]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_ways_bring_real_crystals_back(name, mp20):
    rep, plain = make(name, max_atoms=20, **PUBLISHED[name]), make(name, max_atoms=20)
    for crystal in mp20:
        ids = rep.encode(crystal)
        back, same = rep.decode_arrays(ids), plain.decode_arrays(plain.encode(crystal))
        assert sorted(back[2]) == sorted(same[2]) and np.allclose(back[0], same[0])
    assert all(legal(rep, mp20[::5]))


def test_rutile_in_the_published_order(crystals):
    rep = make("orbits", max_atoms=20, order="published")
    orbits = [f"orbit{rep.orbit_of[136, letter]}" for letter in "af"]
    assert [rep.vocabulary[i] for i in rep.encode(crystals["rutile"])] == [
        "group136", "Ti", "×2", "O", "×4", "<formula>", *orbits, "308/1008", "4Å", ".59Å", "2Å", ".96Å", "<eos>"]


def test_rutile_digit_by_digit(crystals):
    rep = make("invariant", max_atoms=20, numbers="digits")
    names = "".join(rep.vocabulary[i] for i in rep.encode(crystals["rutile"]))
    assert names == ("Ti×2O×4<formula>hall419" "00459" "00296" "Timultiplicity2" "000000000000"
                     "Omultiplicity4" "194480565000" "<eos>")


@pytest.mark.parametrize("condition", [{}, {"space_group": 99, "n_atoms": 7}, {"formula": "SrTiO3"}, {"neutral": True},
                                       {"elements": "Li-Fe-O", "max_atoms": 9, "element": "Fe"}])
@pytest.mark.parametrize("name", PUBLISHED)
def test_rollouts_of_published_ways_decode_and_are_as_asked(name, condition):
    rep = make(name, max_atoms=20, **PUBLISHED[name])
    torch.manual_seed(1)
    policy = CrystalPolicy.create(rep, hidden_size=32, layers=2, heads=2, intermediate_size=64)
    rollout = sample(policy, [condition] * 8, torch.Generator().manual_seed(2))
    with torch.no_grad():
        again, _ = policy.token_logprobs(rollout.ids, 1.0, rollout.conditions)
    assert torch.allclose(again * rollout.mask, rollout.logprobs * rollout.mask, atol=1e-4)
    for crystal in decode(policy, rollout):
        assert isinstance(crystal, Structure), crystal
        if "formula" in condition:
            assert crystal.composition.reduced_formula == "SrTiO3"
        if "n_atoms" in condition:
            assert len(crystal) == 7
        if "elements" in condition:
            assert len(crystal) <= 9 and {"Fe"} <= set(crystal.symbol_set) <= {"Li", "Fe", "O"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_random_tokens_never_crash_the_reader_of_a_published_way(name):
    rep, rng = make(name, max_atoms=20, **PUBLISHED[name]), np.random.default_rng(0)
    for _ in range(500):
        ids = [*rng.integers(0, len(rep.vocabulary), rng.integers(0, 60)).tolist(), rep.eos]
        with pytest.raises(CrystalError):
            rep.decode(ids)


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_other_processes_get_the_same_representation(name):
    conditions = {"density": {"kind": "log", "low": 0.5, "high": 20.0}}
    rep = make(name, max_atoms=12, conditions=conditions)
    again = pickle.loads(pickle.dumps(rep))
    assert type(again) is type(rep) and again.version == rep.version and again.parameters == rep.parameters


def test_ways_of_writing_are_told_apart():
    assert make("orbits", max_atoms=20).version == "676ffb380aca65d2"  # of what the shipped policy writes
    assert make("orbits", max_atoms=20, order="published").version != make("orbits", max_atoms=20).version
    assert make("invariant", numbers="digits").version != make("invariant").version
    for name, wrong in (("orbits", {"order": "any"}), ("invariant", {"numbers": "roman"})):
        with pytest.raises(UserError, match="known: "):
            make(name, **wrong)
