"""Judging samples: who counts in which share, with a real potential and hull on crystals that are known."""

import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from rlgen import evaluation
from rlgen.settings import MetricsConfig
from rlgen.spacegroup import from_spacegroup
from rlgen.types import CrystalError, UserError


def rocksalt(a, *elements):
    return from_spacegroup("Fm-3m", Lattice.cubic(a), elements, [[0, 0, 0], [0.5, 0.5, 0.5]])


NACL = rocksalt(5.69, "Na", "Cl")
SILICON = from_spacegroup("Fd-3m", Lattice.cubic(5.47), ["Si"], [[0, 0, 0]])
CRYSTALS = [
    NACL,  # 0: known and stable
    CrystalError("parse", "ends early"),  # 1
    NACL.get_primitive_structure(),  # 2: a duplicate of 0
    Structure(Lattice.cubic(3.0), ["Na", "Cl"], [[0, 0, 0], [0, 0, 0.1]]),  # 3: atoms 0.3 Å apart
    rocksalt(5.6, "Na", "Si"),  # 4: new, and far above the hull
    SILICON.copy().perturb(0.15, seed=0),  # 5: relaxes back to silicon
]


@pytest.fixture(scope="module")
def judged():
    return evaluation.evaluate({"x": CRYSTALS}, energy="chgnet", reference="shipped:all", steps=60, workers=0,
                               progress=False)["x"]


def test_every_sample_stays_in_the_denominator(judged):
    samples = judged.samples
    assert len(samples) == 6 and judged.notes["samples"] == 6
    assert samples["valid"].tolist() == [True, False, True, False, True, True]
    assert judged.summary["valid"].value == pytest.approx(4 / 6)
    assert samples["apart"].tolist() == samples["radii_apart"].tolist() == samples["valid"].tolist()
    assert samples["neutral"].tolist() == [True, False, True, True, True, True]
    assert samples["status"].tolist()[1] == samples["status"].tolist()[3] == "invalid"
    assert samples["reason"][1] == "parse: ends early"
    assert judged.failures["invalid: parse"] == 1
    assert sum(n for kind, n in judged.failures.items() if kind.startswith("invalid")) == 2
    assert samples["formula"].tolist()[0] == "NaCl" and pd.isna(samples["formula"][1])


def test_a_duplicate_counts_once(judged):
    assert judged.samples["unique"].tolist() == [True, False, False, False, True, True]
    assert judged.summary["unique"].value == pytest.approx(3 / 6)


def test_known_crystals_are_not_novel(judged):
    assert judged.samples["novel"].tolist()[:5] == [False, False, False, False, True]


def test_energies_above_the_hull(judged):
    above, written = judged.samples["e_above_hull"], judged.samples["e_above_hull_written"]
    assert above[0] == pytest.approx(0, abs=0.02) and above[2] == pytest.approx(above[0], abs=0.005)
    assert above[4] > 0.1
    assert above[5] < 0.05 and written[5] > above[5] + 0.02  # relaxation brings it back
    assert above[[1, 3]].isna().all() and written[[1, 3]].isna().all()
    assert judged.summary["metastable"].value == pytest.approx(3 / 6)
    assert judged.notes["scale"].startswith("chgnet")
    moved = judged.samples["displacement"]
    assert moved[0] < 0.02 < moved[5] and moved[[1, 3]].isna().all()
    assert judged.summary["displacement"].value == pytest.approx(moved.mean())


def test_symmetry_and_size(judged):
    assert judged.samples["n_elements"][0] == 2 and judged.samples["density"][0] == pytest.approx(2.11, abs=0.01)
    assert judged.samples["space_group"][0] == 225 and pd.isna(judged.samples["space_group"][1])
    assert judged.samples["n_atoms"][0] == 2 == judged.samples["n_atoms"][2]
    assert judged.samples["prototype"][0] == judged.samples["prototype"][4] == "AB_cF8_225_a_b"
    # elements of the valid: Na 3, Cl 2, Si 2
    p = np.array([3, 2, 2]) / 7
    assert judged.summary["elements"].value == pytest.approx(math.exp(-(p * np.log(p)).sum()))


def test_reports(judged):
    from rich.console import Console

    both = {"pretrained": judged, "fine-tuned": judged}
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(evaluation.table(both))
    text, markdown = console.export_text(), evaluation.as_markdown(both)
    for report in (text, markdown):
        for word in ("pretrained", "fine-tuned", "S.U.N. (≤ 0.1 eV/atom)", "66.7 % [", "space groups", "chgnet"):
            assert word in report
    assert "protostructure labels" in markdown and "fine-tuned: 6" in markdown
    data = json.loads(json.dumps(evaluation.as_dict(both), allow_nan=False))
    assert data["pretrained"]["summary"]["valid"]["value"] == pytest.approx(4 / 6)
    assert data["pretrained"]["failures"]["invalid: parse"] == 1


def samples_table(**columns):
    n = len(columns["e_above_hull"])
    default = {
        "status": ["ok"] * n, "reason": [""] * n, "valid": True, "unique": True, "novel": True, "apart": True,
        "radii_apart": True, "neutral": True, "displacement": [0.1] * n,
        "e_above_hull_written": [math.nan] * n, "space_group": pd.array([225] * n, dtype="Int64"),
        "prototype": ["A"] * n, "n_atoms": pd.array([2] * n, dtype="Int64"), "chemical_system": ["Cl-Na"] * n,
    }  # fmt: skip
    return pd.DataFrame(default | columns)


def test_sun_needs_all_three():
    table = samples_table(
        e_above_hull=[-0.01, 0.1, 0.05, 0.05, math.nan, 0.11, 0.0, 0.05],
        unique=[True, True, False, True, True, True, True, True],
        novel=[True, True, True, False, True, True, True, True],
    )
    summary = evaluation.summarise(table)
    assert summary["metastable"].value == pytest.approx(6 / 8)
    assert summary["stable"].value == pytest.approx(2 / 8)
    assert summary["sun"].value == pytest.approx(4 / 8)
    assert summary["sun_strict"].value == pytest.approx(2 / 8)
    assert summary["msun"].value == pytest.approx(2 / 8)
    assert summary["distinct_prototypes"].value == summary["sun_prototypes"].value == pytest.approx(1000 / 8)
    assert summary["e_above_hull"].value == pytest.approx(0.05)
    assert summary["space_groups"].value == pytest.approx(1)
    assert evaluation.summarise(table)["sun"] == summary["sun"]  # the bootstrap is seeded


def test_missing_labels_are_left_out_of_the_diversity():
    table = samples_table(
        e_above_hull=[0.0] * 4,
        space_group=pd.array([225, 227, None, None], dtype="Int64"),
        n_atoms=pd.array([2, 4, None, 6], dtype="Int64"),
        chemical_system=pd.array(["Cl-Na", "Si", None, None], dtype="string"),
        prototype=pd.array(["A", None, None, None], dtype="string"),
    )
    summary = evaluation.summarise(table)
    assert summary["space_groups"].value == pytest.approx(2)
    assert summary["elements"].value == pytest.approx(3)
    assert summary["n_atoms"].value == pytest.approx(4)


def test_failures_are_counted_by_kind():
    table = pd.DataFrame(
        {
            "status": ["ok", "invalid", "invalid", "failed", "failed"],
            "reason": [
                "",
                "geometry: atoms too close",
                "density 50 g/cm³, not within 0.01 to 40",
                "novelty: symmetry could not be determined; stability: overlap: two atoms are 0.30 Å apart",
                "stability: overlap: two atoms are 0.20 Å apart",
            ],
        }
    )
    assert evaluation.failures(table) == {
        "stability: overlap": 2,
        "invalid: geometry": 1,
        "invalid: density": 1,
        "novelty: symmetry could not be determined": 1,
    }


def test_prototypes_forget_the_chemistry_but_not_the_cell():
    fluorite = from_spacegroup("Fm-3m", Lattice.cubic(5.5), ["Ca", "F"], [[0, 0, 0], [0.25, 0.25, 0.25]])
    antifluorite = from_spacegroup("Fm-3m", Lattice.cubic(5.5), ["O", "Na"], [[0, 0, 0], [0.25, 0.25, 0.25]])
    first, second = evaluation.describe(fluorite), evaluation.describe(antifluorite)
    assert first == second and (first.space_group, first.n_atoms) == (225, 3)
    bismuth = from_spacegroup("R-3m", Lattice.hexagonal(4.55, 11.86), ["Bi"], [[0, 0, 0.234]])
    iron = from_spacegroup("Im-3m", Lattice.cubic(2.87), ["Fe"], [[0, 0, 0]])
    assert (evaluation.describe(bismuth).n_atoms, evaluation.describe(iron).n_atoms) == (2, 1)


def test_a_crystal_of_many_elements_is_described_at_once():
    rng = np.random.default_rng(0)
    elements = ["Li", "Be", "B", "C", "N", "O", "F", "Na", "Mg", "Al"]
    site = evaluation.describe(Structure(Lattice.cubic(7), elements, rng.random((10, 3))))
    assert (site.space_group, site.n_atoms) == (1, 10) and site.prototype


def test_wrong_names_are_refused_before_any_work():
    with pytest.raises(UserError, match="unknown potential"):
        evaluation.evaluate({"x": CRYSTALS}, energy="none", reference="shipped:all", progress=False)
    with pytest.raises(UserError, match="oxidation_states=mine; known: icsd24"):
        mine = MetricsConfig(oxidation_states="mine")
        evaluation.evaluate({"x": CRYSTALS}, energy="chgnet", reference="shipped:all", settings=mine, progress=False)
    with pytest.raises(UserError, match="real=none"):
        evaluation.evaluate({"x": CRYSTALS}, energy="chgnet", reference="shipped:all", real="none", progress=False)
    with pytest.raises(UserError, match="no samples"):
        evaluation.evaluate({"x": []}, energy="chgnet", reference="shipped:all", progress=False)
    with pytest.raises(UserError, match="shipped"):
        evaluation.evaluate({"x": CRYSTALS}, energy="chgnet", reference="shipped:nothing", progress=False)


def test_without_relaxation_the_crystal_as_written_decides():
    found = evaluation.evaluate({"x": [NACL]}, energy="chgnet", reference="shipped:all", relax=False, progress=False)
    result = found["x"]
    assert result.samples["e_above_hull"].equals(result.samples["e_above_hull_written"].rename("e_above_hull"))
    assert "not relaxed" in evaluation.as_markdown(found)


def test_nothing_valid_is_a_result_too():
    broken = [CRYSTALS[1], CRYSTALS[3]]
    found = evaluation.evaluate({"x": broken}, energy="chgnet", reference="shipped:all", progress=False)
    result = found["x"]
    assert result.summary["valid"].value == result.summary["sun"].value == 0
    assert math.isnan(result.summary["space_groups"].value) and math.isnan(result.summary["e_above_hull"].value)
    assert "–" in evaluation.as_markdown(found)
    assert evaluation.as_dict(found)["x"]["summary"]["n_atoms"]["value"] is None
