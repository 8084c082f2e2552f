"""Annotating a data set: what is published stays, what is computed is marked, and a kill costs little."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Structure
from toy_rewards import rocksalts

from rlgen import annotate, data
from rlgen.config import load
from rlgen.samples import to_cif
from rlgen.types import UserError

calls: list[str] = []
interrupt_at: list[int] = []


def length(structure: Structure) -> float:
    """Of the first cell vector; none beyond 5.6 Å."""
    calls.append("length")
    if calls.count("length") in interrupt_at:
        raise KeyboardInterrupt
    return structure.lattice.a if structure.lattice.a < 5.6 else math.nan


@pytest.fixture
def crystals(tmp_path) -> Path:
    """20 rock salts from 5.0 to 5.95 Å; every fourth has a published length, of 1 Å."""
    calls.clear()
    interrupt_at.clear()
    table = pd.DataFrame({"material_id": [f"salt-{i}" for i in range(20)], "cif": [to_cif(s) for s in rocksalts(20)],
                          "length": [1.0 if i % 4 == 0 else np.nan for i in range(20)]})
    table.to_csv(tmp_path / "salts.csv", index=False)
    return tmp_path / "salts.csv"


def run(source: Path, output: Path, *more: str) -> pd.DataFrame:
    functions = ["functions.length=test_annotate:length"]
    annotate.run(load("annotate", [f"data={source}", f"output={output}", "workers=0", "columns=length,density",
                                   "checkpoint_every=4", "energy=chgnet", *functions, *more]))
    tables = [pd.read_csv(output / f"{split}.csv.gz") for split in ("train", "val", "test")]
    whole = pd.concat(tables).set_index("material_id")
    sources = [name for name in whole if name.endswith("_source")]
    return whole.astype(dict.fromkeys(sources, object)).fillna(dict.fromkeys(sources, ""))


def test_published_values_stay_and_computed_ones_are_marked(crystals, tmp_path, capsys):
    table = run(crystals, tmp_path / "out")
    assert len(table) == 20 and len(calls) == 15
    for i, structure in enumerate(rocksalts(20)):
        row = table.loc[f"salt-{i}"]
        assert row["density"] == pytest.approx(structure.density, rel=1e-6) and row["density_source"] == "structure"
        if i % 4 == 0:
            assert row["length"] == 1 and row["length_source"] == "published"
        elif structure.lattice.a < 5.6:
            assert row["length"] == pytest.approx(structure.lattice.a)
            assert row["length_source"] == "test_annotate:length"
        else:
            assert math.isnan(row["length"]) and row["length_source"] == ""
    said = capsys.readouterr().out
    assert "6 without: length: it has none" in said and "length: 5 as they were, others by test_annotate:length" in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["test.csv.gz", "train.csv.gz", "val.csv.gz"]


def test_the_result_is_a_data_set_with_the_same_crystals_and_splits(crystals, tmp_path):
    run(crystals, tmp_path / "out")
    before, after = data.load(crystals), data.load(tmp_path / "out")
    assert {k: [r.id for r in v] for k, v in before.splits.items()} == {
        k: [r.id for r in v] for k, v in after.splits.items()}
    for old, new in zip(before, after, strict=True):
        assert new.lattice == pytest.approx(old.lattice, abs=1e-6) and (new.numbers == old.numbers).all()
        assert set(new.properties) >= {"density"} and old.properties.items() <= new.properties.items()
        assert "length_source" not in new.properties


def test_killed_it_goes_on_where_it_was(crystals, tmp_path):
    whole = run(crystals, tmp_path / "whole")
    calls.clear()
    interrupt_at.append(8)
    with pytest.raises(KeyboardInterrupt):
        run(crystals, tmp_path / "out")
    assert list((tmp_path / "out" / annotate.PIECES).iterdir())
    interrupt_at.clear()
    done = len(calls)
    resumed = run(crystals, tmp_path / "out")
    pd.testing.assert_frame_equal(resumed, whole)
    # What had been saved is not computed again, but for what has no value; of the piece that was cut off all is.
    assert len(calls) - done < 15


def test_values_of_another_source_are_not_taken(tmp_path):
    pieces = annotate.Pieces(tmp_path, {"gap": "one", "length": "a"})
    pieces.save({("x", "gap"): 1.0, ("y", "length"): 2.0})
    assert annotate.Pieces(tmp_path, {"gap": "other", "length": "a"}).found == {("y", "length"): 2.0}


def test_annotated_data_keep_their_sources(crystals, tmp_path):
    first = run(crystals, tmp_path / "first", "columns=length")
    second = run(tmp_path / "first", tmp_path / "second", "columns=n_elements")
    assert second["length_source"].equals(first["length_source"])
    assert (second["n_elements"] == 2).all() and (second["n_elements_source"] == "structure").all()
    third = run(tmp_path / "first", tmp_path / "third", "columns=length")  # what is there is not computed again
    assert third["length_source"].equals(first["length_source"]) and third["length"].equals(first["length"])


def test_mistakes_are_told(crystals, tmp_path):
    with pytest.raises(UserError, match=r"nothing here gives the property 'magnetic_density'"):
        run(crystals, tmp_path / "out", "columns=magnetic_density")
    run(crystals, tmp_path / "out")
    with pytest.raises(UserError, match="already holds a data set"):
        run(crystals, tmp_path / "out")
    with pytest.raises(UserError, match="columns= names what is to be computed"):
        run(crystals, tmp_path / "other", "columns=,")
