"""Reading, caching and making crystals: every format, broken rows, MP-20, prototypes."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import types
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Composition, Lattice, Structure

from rlgen.data import Dataset, Record, cache, load, mp20, parsing, prototypes, split
from rlgen.spacegroup import from_spacegroup
from rlgen.types import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


CRYSTALS = [
    from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.3053, 0.3053, 0]]
    ),
    from_spacegroup("P6_3/mmc", Lattice.hexagonal(3.209, 5.211), ["Mg"], [[1 / 3, 2 / 3, 0.25]]),
    Structure(Lattice.from_parameters(4.1, 5.2, 6.3, 81, 95, 107), ["Li", "Mn", "O"], np.eye(3) * [0.11, 0.22, 0.33]),
]
GAPS = [5.0, None, 0.0, 1.25]


def write_csv(path: Path, rows: list[dict], opener=open) -> Path:
    with opener(path, "wt", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def table(crystals: list[Structure] = CRYSTALS) -> list[dict]:
    return [
        {"material_id": f"m-{i}", "cif": s.to(fmt="cif"), "band_gap": "" if g is None else g, "comment": "fine"}
        for i, (s, g) in enumerate(zip(crystals, GAPS, strict=True))
    ]


def by_id(dataset: Dataset) -> dict[str, Record]:
    return {record.id: record for record in dataset}


def check_same(dataset: Dataset, ids: list[str] | None = None, atol: float = 1e-5) -> None:
    """Every crystal came back: elements, lattice and places. CIF and POSCAR may reorder the sites."""
    found = by_id(dataset)
    for name, crystal in zip(ids or [f"m-{i}" for i in range(4)], CRYSTALS, strict=True):
        structure = found[name].structure
        assert structure.composition == crystal.composition
        assert np.allclose(structure.lattice.parameters, crystal.lattice.parameters, atol=atol)
        for site in crystal:
            fitting = [s for s in structure if s.specie == site.specie]
            assert (
                min(np.abs(d - np.round(d)).max() for d in (s.frac_coords - site.frac_coords for s in fitting)) < atol
            )


def check_gaps(dataset: Dataset) -> None:
    found = by_id(dataset)
    assert found["m-0"].properties == {"band_gap": 5.0}
    assert found["m-1"].properties == {}, "a missing value is absent, neither 0 nor NaN"
    assert found["m-2"].properties == {"band_gap": 0.0}


@pytest.mark.parametrize("opener, name", [(open, "t.csv"), (gzip.open, "t.csv.gz")])
def test_csv(tmp_path, opener, name):
    dataset = load(write_csv(tmp_path / name, table(), opener))
    check_same(dataset)
    check_gaps(dataset)
    assert (dataset.name, dataset.report.rows, dataset.report.usable, dataset.report.broken) == ("t", 4, 4, [])


def test_parquet_with_cif_and_with_dicts(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"id": [f"m-{i}" for i in range(4)], "cif": [s.to(fmt="cif") for s in CRYSTALS], "band_gap": GAPS}),
        tmp_path / "a.parquet",
    )
    pq.write_table(
        pa.table({"id": [f"m-{i}" for i in range(4)], "structure": [s.to_json() for s in CRYSTALS], "band_gap": GAPS}),
        tmp_path / "b.parquet",
    )
    for name in "ab":
        dataset = load(tmp_path / f"{name}.parquet")
        check_same(dataset)
        check_gaps(dataset)


def test_json_lines(tmp_path):
    rows = [
        {"material_id": "m-0", "cif": CRYSTALS[0].to(fmt="cif"), "band_gap": 5.0, "stable": True},
        {"material_id": "m-1", "structure": CRYSTALS[1].as_dict(), "band_gap": None},
        {"material_id": "m-2", "structure": CRYSTALS[2].as_dict(), "properties": {"band_gap": 0.0}},
    ]
    last = CRYSTALS[3].copy(properties={"band_gap": 1.25})
    lines = [json.dumps(row) for row in rows] + [json.dumps(last.as_dict() | {"id": "m-3"})]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    dataset = load(tmp_path / "t.jsonl")
    check_same(dataset)
    check_gaps(dataset)
    assert by_id(dataset)["m-3"].properties == {"band_gap": 1.25}


def test_folder_of_cif_and_poscar(tmp_path):
    folder = tmp_path / "crystals"
    (folder / "run").mkdir(parents=True)
    CRYSTALS[0].to(str(folder / "a.cif"), fmt="cif")
    CRYSTALS[1].to(str(folder / "b.vasp"), fmt="poscar")
    CRYSTALS[2].to(str(folder / "run" / "POSCAR"), fmt="poscar")
    CRYSTALS[3].to(str(folder / "POSCAR.1"), fmt="poscar")
    (folder / "notes.txt").write_text("not a crystal")
    dataset = load(folder)
    check_same(dataset, ["a", "b", "run/POSCAR", "POSCAR.1"])
    assert dataset.report.rows == 4 and dataset.name == "crystals"


def test_a_cif_with_two_crystals_gives_two(tmp_path):
    (tmp_path / "two.cif").write_text(
        "data_global\n_journal x\n" + CRYSTALS[0].to(fmt="cif") + CRYSTALS[1].to(fmt="cif")
    )
    assert {r.structure.composition.reduced_formula for r in load(tmp_path / "two.cif")} == {"NaCl", "TiO2"}


def test_extended_xyz(tmp_path):
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    frames = []
    for i, crystal in enumerate(CRYSTALS):
        atoms = crystal.to_ase_atoms()
        atoms.info = {"material_id": f"m-{i}", **({} if GAPS[i] is None else {"band_gap": GAPS[i]})}
        frames.append(atoms)
    frames[3].calc = SinglePointCalculator(frames[3], energy=-3.5)
    buffer = io.StringIO()
    write(buffer, frames, format="extxyz")
    (tmp_path / "t.extxyz").write_text(buffer.getvalue())
    dataset = load(tmp_path / "t.extxyz")
    check_same(dataset)
    check_gaps(dataset)
    assert by_id(dataset)["m-3"].properties == {"band_gap": 1.25, "energy": -3.5}


def test_a_molecule_in_extended_xyz_is_a_broken_row(tmp_path):
    text = '1\nProperties=species:S:1:pos:R:3 pbc="F F F"\nH 0 0 0\n'
    cell = '1\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3\nPo 0 0 0\n5\nthe end is missing\n'
    (tmp_path / "t.xyz").write_text(text + cell)
    dataset = load(tmp_path / "t.xyz")
    assert [(b.row, b.reason.split()[0]) for b in dataset.report.broken] == [(1, "ValueError:"), (3, "the")]
    assert [r.id for r in dataset] == ["t-2"]


def test_broken_rows_are_counted_with_file_and_row(tmp_path):
    disordered = Structure(Lattice.cubic(3), [{"Cu": 0.5, "Zn": 0.5}], [[0, 0, 0]])
    rows = table()
    rows[1]["cif"] = "data_x\n_cell_length_a 3\n"
    rows[2]["cif"] = ""
    rows.append(rows[0] | {"cif": disordered.to(fmt="cif")})
    rows += [rows[0] | {"material_id": f"more-{i}"} for i in range(10)] + [rows[0] | {"band_gap": "wide"}]
    path = write_csv(tmp_path / "t.csv", rows)
    with path.open("a") as stream:
        stream.write("only,three,fields\n")
    dataset = load(path)
    broken = {b.row: b.reason for b in dataset.report.broken}
    assert {b.file for b in dataset.report.broken} == {"t.csv"}
    assert set(broken) == {2, 3, 5, 16, 17}
    assert "empty" in broken[3] and "disordered" in broken[5] and "wide" in broken[16] and "3 fields" in broken[17]
    assert dataset.report.rows == 17 and dataset.report.usable == len(dataset) == 12
    assert "5 of 17 rows could not be used" in dataset.summary() and "t.csv row 2" in dataset.summary()


@pytest.mark.parametrize(
    "structure, reason",
    [
        (Structure(Lattice.cubic(3), [], []), "no atoms"),
        (Structure(Lattice.cubic(3), ["X"], [[0, 0, 0]]), "not an element"),
        (Structure(Lattice.cubic(3), ["H"], [[np.nan, 0, 0]]), "not a finite number"),
    ],
)
def test_structures_that_are_no_crystals(structure, reason):
    assert reason in parsing.row_of(structure, file="f", row=1, id="", properties={}).reason


def test_a_poscar_without_element_names_is_not_guessed(tmp_path):
    (tmp_path / "POSCAR").write_text("?\n1.0\n3 0 0\n0 3 0\n0 0 3\n1\ndirect\n0 0 0\n")
    with pytest.raises(UserError, match="no usable row"):
        load(tmp_path / "POSCAR")


def test_no_usable_row_says_why(tmp_path):
    path = write_csv(tmp_path / "t.csv", [{"cif": "nonsense"}, {"cif": ""}])
    with pytest.raises(UserError, match=r"no usable row in .*t\.csv: 2 read.*row 1: .*row 2: "):
        load(path)
    (tmp_path / "none.csv").write_text("cif\n")
    with pytest.raises(UserError, match="no usable row"):
        load(tmp_path / "none.csv")


def test_mistakes_are_explained(tmp_path):
    with pytest.raises(UserError, match=r"Did you mean 'mp20'.*mp20, prototypes"):
        load("mp_20")
    with pytest.raises(UserError, match=r"no column `cif`.*its columns: formula, gap"):
        load(write_csv(tmp_path / "t.csv", [{"formula": "NaCl", "gap": 5}]))
    (tmp_path / "t.docx").write_text("")
    with pytest.raises(UserError, match="cannot tell the format"):
        load(tmp_path / "t.docx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no CIF or POSCAR"):
        load(tmp_path / "empty")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"cif\n" + os.urandom(999))[:99])
    with pytest.raises(UserError, match=r"cannot read .*cut"):
        load(tmp_path / "cut.csv.gz")
    with pytest.raises(UserError, match="at least 1"):
        load("mp20", limit=0)


def test_split_depends_on_seed_and_size_only():
    records = [Record(str(i), CRYSTALS[0]) for i in range(200)]
    ids = [{k: [r.id for r in v] for k, v in split(records, seed).items()} for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert [len(ids[0][name]) for name in ("train", "val", "test")] == [180, 10, 10]
    assert sorted((i for part in ids[0].values() for i in part), key=int) == [str(i) for i in range(200)]
    assert [len(part) for part in split(records[:3]).values()] == [1, 1, 1]
    assert [len(part) for part in split(records[:1]).values()] == [1, 0, 0]


def test_cache_hit_equals_first_parse_and_a_changed_file_is_read_again(tmp_path, monkeypatch, own_cache):
    rows = table()
    rows[1]["cif"] = "nonsense"
    path = write_csv(tmp_path / "t.csv", rows)
    first = load(path)
    assert len(list(own_cache.rglob("*.parquet"))) == 1 and not list(own_cache.rglob(".*")), "nothing left aside"
    real = parsing.parse
    monkeypatch.setattr("rlgen.data.loading.parse", lambda rows: pytest.fail("parsed although cached"))
    again = load(path)
    assert again.report == first.report
    for a, b in zip(first, again, strict=True):
        assert a.id == b.id and a.properties == b.properties
        assert all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("lattice", "numbers", "frac_coords"))
        assert a.structure == b.structure
    # The same content under another name is a hit too, and the report speaks of that name.
    renamed = load(path.rename(tmp_path / "u.csv"))
    assert renamed.report.broken[0].file == "u.csv"
    monkeypatch.setattr("rlgen.data.loading.parse", real)
    write_csv(tmp_path / "u.csv", table())
    assert load(tmp_path / "u.csv").report.usable == 4


def test_limit_takes_the_first_rows_cached_or_not(tmp_path):
    path = write_csv(tmp_path / "t.csv", table())
    before = sorted(by_id(load(path, limit=2)))
    load(path)
    assert before == sorted(by_id(load(path, limit=2))) == ["m-0", "m-1"]


def test_a_damaged_cache_entry_is_made_anew(tmp_path, own_cache):
    path = write_csv(tmp_path / "t.csv", table())
    load(path)
    entry = next(own_cache.rglob("*.parquet"))
    entry.write_bytes(entry.read_bytes()[:100])
    with pytest.warns(UserWarning, match="made anew"):
        check_same(load(path))


def test_several_processes_give_what_one_gives(tmp_path, monkeypatch):
    rows = [parsing.RawRow("f", i, "", "cif", row["cif"]) for i, row in enumerate(table())]
    alone = cache.to_table(parsing.parse(rows))
    monkeypatch.setattr(parsing, "_SERIAL", 1)
    monkeypatch.setattr(parsing, "_CHUNK", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert cache.to_table(parsing.parse(rows)).equals(alone)


def test_record_from_a_structure_and_structures_are_not_shared():
    record = Record("x", CRYSTALS[1].copy().add_oxidation_state_by_guess(), {"gap": 1.0})
    assert record.structure.matches(CRYSTALS[1]) and record.structure.elements == CRYSTALS[1].elements
    record.structure.perturb(0.1)
    assert np.allclose(record.structure.frac_coords, CRYSTALS[1].frac_coords)


def mp20_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_csv(folder / "train.csv", table())
    write_csv(folder / "val.csv.gz", table(), gzip.open)
    write_csv(folder / "test.csv", table())
    return folder


def test_mp20_is_found_where_the_user_put_it(tmp_path, monkeypatch, own_cache):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: pytest.fail("went to the network"))
    monkeypatch.delenv("RLGEN_DATA", raising=False)
    folder = mp20_folder(tmp_path / "data" / "mp_20")
    assert {k: len(v) for k, v in load("mp20", path=folder, limit=3).splits.items()} == {
        "train": 3,
        "val": 3,
        "test": 3,
    }
    for given in (folder, folder.parent):
        monkeypatch.setenv("RLGEN_DATA", str(given))
        assert len(load("mp20")) == 12
    monkeypatch.delenv("RLGEN_DATA")
    mp20_folder(own_cache / "mp_20")
    assert len(load("mp20")) == 12
    assert {k: len(v) for k, v in load(folder).splits.items()} == {"train": 4, "val": 4, "test": 4}
    with pytest.raises(UserError, match="no train, val and test"):
        load("mp20", path=tmp_path)


def test_mp20_offline_says_what_to_do(monkeypatch, own_cache):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.delenv("RLGEN_DATA", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(UserError, match=r"no route.*RLGEN_DATA") as caught:
        load("mp20")
    assert str(own_cache / "mp_20") in str(caught.value)
    assert not [p for p in own_cache.rglob("*") if p.is_file()], "nothing half-made is left"


def test_mp20_download_is_checked_and_renamed(tmp_path, monkeypatch, own_cache):
    source = mp20_folder(tmp_path / "source")
    content = {"train": (source / "train.csv").read_bytes()}
    content |= {"val": content["train"], "test": content["train"]}

    class Response(io.BytesIO):
        headers = types.MappingProxyType({})

    def urlopen(url, timeout):
        return Response(content[Path(url).stem])

    monkeypatch.delenv("RLGEN_DATA", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(UserError, match="not the published file"):
        load("mp20")
    assert not [p for p in own_cache.rglob("*") if p.is_file()]
    digest = hashlib.sha256(content["train"]).hexdigest()
    monkeypatch.setattr(mp20, "SHA256", dict.fromkeys(mp20.SPLITS, digest))
    assert len(load("mp20")) == 12
    assert sorted(p.name for p in (own_cache / "mp_20").iterdir()) == ["test.csv", "train.csv", "val.csv"]


def test_mp20_against_its_own_columns():
    if not os.environ.get("RLGEN_DATA"):
        pytest.skip("RLGEN_DATA is not set: MP-20 is not here to compare with")
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    dataset = load("mp20", limit=200)
    assert {name: len(records) for name, records in dataset.splits.items()} == {"train": 200, "val": 200, "test": 200}
    file = mp20.find()["val"]
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", newline="") as stream:
        rows = {row["material_id"]: row for row, _ in zip(csv.DictReader(stream), range(200), strict=False)}
    agree = 0
    for record in dataset.splits["val"]:
        row, structure = rows[record.id], record.structure
        assert structure.composition.reduced_composition == Composition(row["pretty_formula"]).reduced_composition
        assert len(structure) <= 20
        assert record.properties["spacegroup.number"] == float(row["spacegroup.number"])
        for name in ("formation_energy_per_atom", "band_gap", "e_above_hull"):
            assert record.properties.get(name) == (float(row[name]) if row[name] else None)
        agree += SpacegroupAnalyzer(structure, symprec=0.1).get_space_group_number() == int(row["spacegroup.number"])
    assert agree >= 0.97 * 200, "at the published tolerance the symmetry is the one that is stated"


def test_prototypes_are_deterministic_valid_and_diverse(own_cache):
    first = prototypes.build(limit=250, per_prototype=3, max_atoms=6)
    (entry,) = own_cache.rglob("*.parquet")
    entry.unlink()
    again = prototypes.build(limit=250, per_prototype=3, max_atoms=6)
    assert [r.id for r in first] == [r.id for r in again]
    assert all(np.array_equal(a.lattice, b.lattice) for a, b in zip(first, again, strict=True))
    assert len({r.id for r in first}) == len(first) == 250
    for record in first:
        structure = record.structure
        assert len(structure) <= 6 and structure.is_ordered
        distances = structure.distance_matrix[~np.eye(len(structure), dtype=bool)]
        assert min([*distances, *structure.lattice.abc]) > 0.7
        assert 4 < structure.volume / len(structure) < 90
    assert len({r.properties["spacegroup.number"] for r in first}) > 20


def test_prototypes_decorated_as_ions_are_neutral():
    rock_salt = prototypes.Prototype(
        0, "AB_cF8_225_a_b", CRYSTALS[0].get_primitive_structure(), 225, {"Na": 1, "Cl": -1}
    )
    drawn = prototypes._decorations(rock_salt, 20, np.random.default_rng(0))
    assert drawn[0] == {"Na": "Na", "Cl": "Cl"} and len(drawn) == 20
    for decoration in drawn:
        guesses = Composition("".join(decoration.values())).oxi_state_guesses(all_oxi_states=True)
        assert guesses, f"{decoration} has no neutral assignment of oxidation states"
