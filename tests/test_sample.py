"""`python -m rlgen.sample`: what is asked for is what comes, and a part of a crystal can be written anew."""

from __future__ import annotations

import pytest
import torch
from conftest import CRYSTALS

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from policies.representations import REPRESENTATIONS, make
from rlgen import samples
from rlgen.config import load
from rlgen.sample import run
from rlgen.types import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random policy of each representation, in a folder, by name."""
    found = {}
    for name in REPRESENTATIONS:
        torch.manual_seed(0)
        policy = CrystalPolicy.create(make(name, max_atoms=12), hidden_size=32, layers=2, heads=2,
                                      intermediate_size=64)
        found[name] = tmp_path_factory.mktemp(name)
        policy.save_pretrained(found[name])
        PromptTable.of([221, 225, 166], [[38, 22, 8, 8, 8], [11, 17], [3, 27, 8, 8]]).save(found[name])
    return found


def sampled(folder, output, *arguments):
    run(load("sample", [f"policy={folder}", f"output={output}", "n=12", "batch=5", *arguments]))
    return samples.read(output).crystals


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_a_formula_is_what_is_asked_for(folders, tmp_path, name):
    found = sampled(folders[name], tmp_path / "out", "condition.formula=SrTiO3")
    assert [s.composition.reduced_formula for s in found] == ["SrTiO3"] * 12


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_elements_and_size_are_what_is_asked_for(folders, tmp_path, name):
    found = sampled(folders[name], tmp_path / "out", "condition.elements=[Li,Co,O]", "condition.max_atoms=4",
                    "condition.neutral=true", f"representation={name}")
    assert all(len(s) <= 4 and set(s.symbol_set) <= {"Li", "Co", "O"} for s in found)


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_all_elements_of_a_system_are_there(folders, tmp_path, name):
    found = sampled(folders[name], tmp_path / "out", "condition.chemical_system=Li-Co-O,Na-Cl", "condition.max_atoms=5")
    assert [set(s.symbol_set) for s in found] == [{"Li", "Co", "O"}] * 12 + [{"Na", "Cl"}] * 12


def test_part_of_a_crystal_is_written_anew(folders, tmp_path):
    file = tmp_path / "salt.cif"
    salt = CRYSTALS["rock salt"].get_primitive_structure()
    salt.to(str(file))
    found = sampled(folders["text"], tmp_path / "out", f"infill={file}", "mask=element:Na", "draws=2")
    for s in found:
        assert "Cl" in s.symbol_set and len(s) == 2
        assert s.lattice.abc == pytest.approx(salt.lattice.abc, abs=0.01)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("atoms", ["representation=orbits"], "writes crystals as atoms, not orbits"),
        ("orbits", ["condition.space_group=230", "condition.n_atoms=3"], "no choice of Wyckoff positions"),
        ("orbits", ["condition.formula=LiF", "condition.elements=Li"], "does not allow"),
        ("atoms", ["condition.chemical_system=Li-Co-O", "condition.n_atoms=2"], "n_atoms=2 is too few for 3 elements"),
        ("text", ["condition.element=Li-O", "condition.elements=Li-F"], "element=Li-O has elements that elements=Li-F"),
        ("text", ["mask=lattice"], "go together"),
        ("text", ["infill={cif}", "mask=element:Ca"], "no such site"),
        ("orbits", ["infill={cif}", "mask=lattice"], "cannot fill in"),
    ],
)
def test_what_cannot_be_done_says_so(folders, tmp_path, name, arguments, message):
    file = tmp_path / "salt.cif"
    CRYSTALS["rock salt"].to(str(file))
    with pytest.raises(UserError, match=message):
        sampled(folders[name], tmp_path / "out", *(a.format(cif=file) for a in arguments))
