"""An index gives back what was put in, and the verdicts of pymatgen's matcher on everything."""

import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from rlgen.crystal_index import CrystalIndex, formula_key, pack, unpack
from rlgen.data import Record
from rlgen.reference import Reference, Tolerance
from rlgen.types import UserError


def records(crystals):
    return [Record(str(i), crystal) for i, crystal in enumerate(crystals)]


def test_crystals_come_back_to_the_bit(crystals):
    for crystal in crystals.values():
        back = unpack(pack(Record("", crystal)))
        assert np.array_equal(back.lattice.matrix, crystal.lattice.matrix)
        assert np.array_equal(back.frac_coords, crystal.frac_coords) and back.species == crystal.species


@pytest.mark.parametrize("on_disk", [False, True])
def test_crystals_are_found_by_their_formula(crystals, tmp_path, on_disk):
    salt, silicon = crystals["rock salt"], crystals["diamond"]
    path = tmp_path / "sub" / "known.sqlite" if on_disk else None
    index = CrystalIndex.build(records([salt, silicon, salt.get_primitive_structure()]), "mine", path)
    assert (index.size, index.source) == (3, "mine")
    assert sorted(atoms for _, atoms in index.of_formula(formula_key([11, 17]))) == [2, 8]
    assert index.of_formula(formula_key([12, 17])) == []
    if path is not None:
        assert [file.name for file in path.parent.iterdir()] == ["known.sqlite"]
        assert CrystalIndex.open(path).size == 3


def test_the_verdicts_are_those_of_pymatgen(mp20):
    """Against every crystal, with no bucket or reduced cell of ours; among equal formulas where they can differ."""
    rng = np.random.default_rng(0)
    known, other = mp20[:90], mp20[90:]
    noise = rng.uniform(0.01, 0.6, 25)  # Å
    noisy = [crystal.copy().perturb(float(d)) for crystal, d in zip(known, noise, strict=False)]
    exchanged = []
    for crystal in known[:25]:  # the same formula, its atoms in other places
        shuffled = [crystal.species[i] for i in rng.permutation(len(crystal))]
        exchanged.append(Structure(crystal.lattice, shuffled, crystal.frac_coords))
    doubled = [crystal.make_supercell([1, 1, 2], in_place=False) for crystal in known[25:35]]
    asked = noisy + exchanged + doubled + other[:15]
    reference = Reference("mine", 90, "mine", index=CrystalIndex.build(records(known), "mine"))
    matcher = StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5)
    verdicts = [reference.contains(crystal) for crystal in asked]
    assert verdicts == [any(matcher.fit(crystal, one) for one in known) for crystal in asked]
    assert 30 < sum(verdicts) < 65  # both answers occur


def test_tolerances_decide(crystals, tmp_path):
    salt = crystals["rock salt"]
    path = tmp_path / "known.sqlite"
    CrystalIndex.build(records([salt]), "mine", path)
    strained = salt.copy()
    strained.apply_strain([0.1, 0, 0])
    assert Reference.load(str(path)).contains(strained)
    strict = Reference.load(str(path), Tolerance(ltol=0.02))
    assert not strict.contains(strained) and strict.contains(salt)
    assert strict.method == "StructureMatcher(ltol=0.02, stol=0.3, angle_tol=5) against 1 crystals of mine"


def test_what_is_no_index_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no such file.*build_reference"):
        Reference.load(str(tmp_path / "none.sqlite"))
    (tmp_path / "text.sqlite").write_text("not a database, but a text that is long enough to be one" * 20)
    with pytest.raises(UserError, match="cannot be read as an index"):
        CrystalIndex.open(tmp_path / "text.sqlite")
    CrystalIndex.build([], "mine", tmp_path / "old.sqlite")
    with sqlite3.connect(tmp_path / "old.sqlite") as connection:
        connection.execute("UPDATE about SET value = '0' WHERE key = 'version'")
    with pytest.raises(UserError, match="build it again"):
        CrystalIndex.open(tmp_path / "old.sqlite")


def test_the_command_makes_one(tmp_path, crystals):
    folder = tmp_path / "cifs"
    folder.mkdir()
    for name in ("rock salt", "quartz"):
        crystals[name].to(str(folder / f"{name}.cif"))
    target = tmp_path / "known.sqlite"
    command = [sys.executable, "-m", "rlgen.build_reference", str(folder)]
    done = subprocess.run([*command, str(target)], capture_output=True, text=True)
    assert done.returncode == 0 and "2 crystals" in done.stdout
    reference = Reference.load(str(target))
    assert reference.contains(crystals["quartz"]) and not reference.contains(crystals["rutile"])
    assert reference.contains(Structure(Lattice.cubic(5.5), *zip(*[(s.specie, s.frac_coords) for s in
                                                                    crystals["rock salt"]], strict=True)))
    failed = subprocess.run([*command, str(tmp_path / "known.txt")], capture_output=True, text=True)
    assert failed.returncode == 2 and ".sqlite or .parquet" in failed.stderr
