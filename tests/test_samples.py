"""The samples table: what is written comes back, and what is broken stays in it."""

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from rlgen import samples
from rlgen.formats import FORMATS
from rlgen.spacegroup import from_spacegroup
from rlgen.types import CrystalError, UserError

NACL = from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
SKEW = Structure(
    Lattice.from_parameters(4.123456, 5.2, 6.3, 81.0, 95.5, 107.25),
    ["Si", "O", "O"],
    [[0.01, 0.02, 0.03], [1 / 3, 2 / 3, 0.123456], [0.71, 0.4, 0.9]],
)
BAD = CrystalError("geometry", "atoms: too close")
CRYSTALS = [NACL, BAD, SKEW]


def close(a, b):
    return (
        a.species == b.species
        and np.allclose(a.lattice.abc + a.lattice.angles, b.lattice.abc + b.lattice.angles, atol=1e-4)
        and np.allclose((a.frac_coords - b.frac_coords + 0.5) % 1 - 0.5, 0, atol=1e-5)
    )


def by_position(structure):
    order = np.lexsort(np.round(structure.frac_coords % 1, 4).T)
    return Structure(structure.lattice, [structure.species[i] for i in order], structure.frac_coords[order])


def check(crystals):
    assert close(by_position(crystals[0]), by_position(NACL))
    assert (crystals[1].kind, crystals[1].message) == ("geometry", "atoms: too close")
    assert close(crystals[2], SKEW)


def test_what_is_written_comes_back(tmp_path):
    conditions = [{"n_atoms": 2}, {}, {"element": "O"}]
    columns = {"total": np.array([0.5, 0.0, 0.25]), "condition": conditions, "ids": [[1, 2], [], [3]]}
    out = samples.write(tmp_path / "new" / "out", CRYSTALS, columns)
    assert sorted(p.name for p in out.iterdir()) == ["cif", "samples.extxyz", "samples.parquet"]
    assert sorted(p.name for p in (out / "cif").iterdir()) == ["000000.cif", "000002.cif"]
    table = pd.read_parquet(out / "samples.parquet")
    assert list(table.columns) == ["index", "cif", "formula", "error", "total", "condition", "ids"]
    assert table["cif"].isna().tolist() == [False, True, False]
    assert table["error"].isna().tolist() == [True, False, True]
    assert table["formula"][0] == "NaCl" and table["condition"][0] == '{"n_atoms": 2}'
    assert list(table["ids"][0]) == [1, 2]
    for source in (out, out / "samples.parquet"):
        back = samples.read(source)
        check(back.crystals)
        assert back.names == ["0", "1", "2"]
        assert back.columns["total"].tolist() == [0.5, 0.0, 0.25]


def test_cif_folder_and_extxyz_alone(tmp_path):
    samples.write(tmp_path, CRYSTALS)
    folder = samples.read(tmp_path / "cif")
    assert folder.names == ["000000", "000002"] and folder.columns is None
    frames = samples.read(tmp_path / "samples.extxyz")
    for back in (folder, frames):
        assert len(back.crystals) == 2 and close(back.crystals[1], SKEW)


ALL = "cif,extxyz,db,json,lemat"


def test_every_format_comes_back(tmp_path):
    samples.write(tmp_path, CRYSTALS, formats=ALL)
    names = [samples.TABLE, *(one.name for one in FORMATS.values())]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    for name in ("cif", "samples.extxyz", "samples.db"):
        back = samples.read(tmp_path / name)
        assert len(back.crystals) == 2 and close(by_position(back.crystals[0]), by_position(NACL))
        assert close(back.crystals[1], SKEW)
    for name in ("samples.json", "lemat.csv"):
        back = samples.read(tmp_path / name)
        assert close(by_position(back.crystals[0]), by_position(NACL)) and close(back.crystals[2], SKEW)
        assert back.crystals[1].kind == "parse"
    samples.write(tmp_path, CRYSTALS, formats="db")  # what was not asked for is no longer there
    assert sorted(p.name for p in tmp_path.iterdir()) == ["samples.db", samples.TABLE]


def test_other_tools_read_them(tmp_path):
    """By their own means, as their users would."""
    import json

    import ase.db
    import ase.io
    from monty.serialization import loadfn

    samples.write(tmp_path, CRYSTALS, formats=ALL)
    rows = list(ase.db.connect(tmp_path / "samples.db").select())
    assert [(row.sample, row.formula) for row in rows] == [(0, "Na4Cl4"), (2, "O2Si")] and all(rows[0].pbc)
    frames = ase.io.read(tmp_path / "samples.extxyz", ":")
    assert [frame.info["index"] for frame in frames] == [0, 2]
    first, none, last = loadfn(tmp_path / "samples.json")
    assert first == NACL and none is None and last == SKEW
    assert json.loads((tmp_path / "samples.json").read_text())[0]["@class"] == "Structure"
    table = pd.read_csv(tmp_path / "lemat.csv")  # as LeMat-GenBench's loader: the column, and empty cells left out
    assert [len(Structure.from_str(cif, fmt="cif")) for cif in table["cif_string"].dropna()] == [8, 3]


def test_unknown_formats_are_refused(tmp_path):
    with pytest.raises(UserError, match="'xyz' is unknown; known: cif, extxyz, db, json, lemat"):
        samples.write(tmp_path / "new", CRYSTALS, formats="cif,xyz")
    assert not (tmp_path / "new").exists()


def test_writing_again_replaces_and_leaves_other_files(tmp_path):
    (tmp_path / "config.yaml").write_text("kept")
    samples.write(tmp_path, CRYSTALS)
    samples.write(tmp_path, [BAD, SKEW])
    assert sorted(p.name for p in (tmp_path / "cif").iterdir()) == ["000001.cif"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cif", "config.yaml", "samples.extxyz", "samples.parquet"]
    assert len(samples.read(tmp_path).crystals) == 2


def test_failing_write_changes_nothing(tmp_path, monkeypatch):
    samples.write(tmp_path, CRYSTALS)
    broken = FORMATS["extxyz"]._replace(write=lambda *_: (_ for _ in ()).throw(OSError("no space")))
    monkeypatch.setitem(FORMATS, "extxyz", broken)
    with pytest.raises(OSError, match="no space"):
        samples.write(tmp_path, [SKEW])
    check(samples.read(tmp_path).crystals)


def test_cut_off_write_is_refused_until_written_again(tmp_path):
    samples.write(tmp_path, CRYSTALS)
    (tmp_path / ".unfinished-123").mkdir()
    with pytest.raises(UserError, match="cut off"):
        samples.read(tmp_path)
    samples.write(tmp_path, CRYSTALS)
    check(samples.read(tmp_path).crystals)


def test_wrong_columns_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 rows"):
        samples.write(tmp_path, CRYSTALS, {"total": [1, 2]})
    with pytest.raises(ValueError, match="own"):
        samples.write(tmp_path, CRYSTALS, {"cif": [1, 2, 3]})


def test_all_undecodable_is_written_and_refused_on_reading(tmp_path):
    samples.write(tmp_path, [BAD, BAD])
    with pytest.raises(UserError, match="none of 2 samples"):
        samples.read(tmp_path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_tables_of_other_tools(tmp_path, suffix):
    broken = samples.to_cif(NACL).replace("_cell_length_a", "_cell_nothing")
    cifs = [samples.to_cif(SKEW), "no cif", None, broken]
    table = pd.DataFrame({"material_id": ["a", "b", "c", "d"], "cif": cifs, "score": [1, 2, 3, 4]})
    file = tmp_path / f"table.{suffix}"
    if suffix == "csv":
        table.to_csv(file, index=False)
    elif suffix == "jsonl":
        table.to_json(file, orient="records", lines=True)
    else:
        table.to_parquet(file)
    back = samples.read(file)
    assert back.names == ["a", "b", "c", "d"] and back.columns["score"].tolist() == [1, 2, 3, 4]
    assert close(back.crystals[0], SKEW)
    assert [c.kind for c in back.crystals[1:]] == ["parse"] * 3


def test_folder_of_another_tool(tmp_path):
    (tmp_path / "10.cif").write_text(samples.to_cif(SKEW))
    (tmp_path / "9.cif").write_text("nonsense")
    (tmp_path / "POSCAR_a").write_text(NACL.to(fmt="poscar"))
    (tmp_path / "b.vasp").write_text(SKEW.to(fmt="poscar"))
    (tmp_path / "notes.txt").write_text("not a crystal")
    back = samples.read(tmp_path)
    assert back.names == ["9", "10", "POSCAR_a", "b"]
    assert isinstance(back.crystals[0], CrystalError)
    assert all(isinstance(c, Structure) for c in back.crystals[1:])
    assert samples.read(tmp_path / "10.cif").names == ["10"]


def test_extxyz_with_broken_frames(tmp_path):
    samples.write(tmp_path, [SKEW, NACL, SKEW])
    text = (tmp_path / "samples.extxyz").read_text()
    lines = text.splitlines()
    molecule = ["2", 'Properties=species:S:1:pos:R:3 pbc="F F F"', "O 0 0 0", "O 0 0 1.2"]
    broken = [*lines[:4], "O not numbers at all", *molecule, "nonsense", *lines[5:]]
    file = tmp_path / "other.extxyz"
    file.write_text("\n".join(broken))
    kinds = [c.kind if isinstance(c, CrystalError) else c.formula for c in samples.read(file).crystals]
    assert kinds == ["parse", "geometry", "parse", NACL.formula, SKEW.formula]


def test_disorder_and_oxidation_states(tmp_path):
    alloy = Structure(Lattice.cubic(3), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    charged = Structure(Lattice.cubic(4.2), ["Cs+", "Cl-"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    (tmp_path / "alloy.cif").write_text(alloy.to(fmt="cif"))
    (tmp_path / "charged.cif").write_text(charged.to(fmt="cif"))
    first, second = samples.read(tmp_path).crystals
    assert first.kind == "chemistry"
    assert [site.species_string for site in second] == ["Cs", "Cl"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "no such file"),
        ("table.csv", "a,b\n1,2\n", "no column 'cif' .it has: a, b"),
        ("table.parquet", "not parquet", "cannot be read"),
        ("empty.csv", "", "cannot be read"),
        ("x.txt", "?", "unknown kind"),
        ("x.extxyz", "", "no samples"),
        ("x.json", "{", "cannot be read as JSON"),
        ("x.json", "[null, {}]", "none of 2 samples"),
        ("x.db", "not a database" * 99, "cannot be read as a database"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        samples.read(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_empty_and_ambiguous_folders(tmp_path):
    with pytest.raises(UserError, match="no samples"):
        samples.read(tmp_path)
    (tmp_path / "a.csv").write_text("cif\n")
    (tmp_path / "b.csv").write_text("cif\n")
    with pytest.raises(UserError, match=r"a\.csv, b\.csv: name the one"):
        samples.read(tmp_path)
