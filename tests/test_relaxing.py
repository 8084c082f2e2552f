"""rlgen.relax: every sample in the table, crystals that can be read again, interruptions, and mistakes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from rlgen import config, counters, relax, samples
from rlgen.energies import known, load_potential
from rlgen.relaxing import Relaxed, relax_samples, summary
from rlgen.types import CrystalError, UserError

SQUEEZED = known.cell("NaCl").get_primitive_structure()
SQUEEZED.scale_lattice(SQUEEZED.volume * 0.85)
ISOLATED = Structure(Lattice.cubic(7), ["Na"], [[0, 0, 0]])
OVERLAPPING = Structure(Lattice.cubic(5), ["Na", "Cl"], [[0, 0, 0], [0, 0, 0.03]])
SAMPLES = [SQUEEZED, CrystalError("parse", "ends early"), OVERLAPPING, ISOLATED, known.cell("TiO2")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLGEN_CACHE", str(tmp_path / "cache"))


def settings(*arguments: str):
    return config.load("relax", [*arguments, "energy=chgnet", "workers=0"])


@pytest.fixture
def written(tmp_path):
    return samples.write(tmp_path / "written", SAMPLES)


def test_a_row_for_every_sample(written, tmp_path, capsys):
    relax.run(settings(f"input={written}", f"output={tmp_path / 'out'}"))
    table = pd.read_parquet(tmp_path / "out" / "samples.parquet")
    assert table["outcome"].tolist() == ["converged", "failed", "failed", "failed", "converged"]
    assert table["reason"][1] == "parse: ends early" and table["reason"][3].startswith("isolated")
    assert "apart" in table["reason"][2] or "distance" in table["reason"][2]
    good = table.loc[[0, 4]]
    assert (good["max_force"] < 0.1).all() and (good["energy"] <= good["energy_written"]).all()
    assert good["e_above_hull"].abs().max() < 0.05 and (good["scale"] == "chgnet-0.3.0").all()
    assert table["volume_change"][0] == pytest.approx(1 / 0.85 - 1, abs=0.08) and table["steps"][0] > 3
    assert table.loc[[1, 2, 3], ["energy", "e_above_hull", "max_force", "volume_change"]].isna().all(axis=None)
    read = samples.read(tmp_path / "out").crystals
    assert [isinstance(crystal, Structure) for crystal in read] == [True, False, False, False, True]
    assert read[0].volume == pytest.approx(SQUEEZED.volume * (1 + table["volume_change"][0]), rel=1e-5)
    assert len(list((tmp_path / "out" / "cif").iterdir())) == 2
    shown = capsys.readouterr().out
    assert "5 samples: 2 converged, 0 ran out of steps, 0 of time, 3 failed" in shown and "1 isolated" in shown


def test_again_it_only_looks_up_and_says_the_same(written, tmp_path):
    relax.run(settings(f"input={written}", f"output={tmp_path / 'one'}"))
    counters.drain()
    relax.run(settings(f"input={written}", f"output={tmp_path / 'two'}"))
    assert counters.drain()["cache_misses"] == 0
    one, two = (pd.read_parquet(tmp_path / name / "samples.parquet") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


@pytest.mark.parametrize("mode", ["positions", "single_point"])
def test_modes(mode):
    relaxed, columns = relax_samples([SQUEEZED, known.cell("TiO2")], Relaxed("chgnet", mode), workers=0, progress=False)
    assert columns["volume_change"] == pytest.approx([0, 0])
    if mode == "single_point":
        assert columns["steps"] == [0, 0] and relaxed[0].matches(SQUEEZED)
        points = load_potential("chgnet").evaluate([SQUEEZED])
        assert columns["energy"][0] == columns["energy_written"][0] == pytest.approx(points[0].energy, abs=1e-5)


def test_out_of_time_and_out_of_steps():
    _, columns = relax_samples([SQUEEZED] * 2, Relaxed("chgnet", fmax=1e-4, seconds=1e-3), workers=0, progress=False)
    assert columns["outcome"] == ["time", "time"] and not any(columns["converged"])
    relaxed, columns = relax_samples([SQUEEZED], Relaxed("chgnet", fmax=1e-4, steps=1), workers=0, progress=False)
    assert columns["outcome"] == ["steps"] and isinstance(relaxed[0], Structure)
    assert "1 ran out of steps" in summary(columns)


def test_a_crystal_without_a_hull_is_relaxed_all_the_same(monkeypatch):
    from rlgen.hull import Hull, HullError

    def none(self, composition, energy, *, scale):
        raise HullError("nothing is known of Na")

    monkeypatch.setattr(Hull, "e_above_hull", none)
    relaxed, columns = relax_samples([SQUEEZED], Relaxed("chgnet"), workers=0, progress=False)
    assert isinstance(relaxed[0], Structure) and columns["outcome"] == ["converged"]
    assert np.isnan(columns["e_above_hull"][0]) and columns["reason"] == ["hull: nothing is known of Na"]


def test_workers_fill_the_cache_and_agree_to_the_bit():
    crystals = [SQUEEZED, known.cell("TiO2"), ISOLATED]
    reward = Relaxed("chgnet", steps=3, fmax=0.02)
    counters.drain()
    theirs = relax_samples(crystals, reward, workers=1, progress=False)
    assert counters.drain()["cache_misses"] == 0  # in this process: all came from the worker
    ours = relax_samples(crystals, reward, workers=0, progress=False)
    assert pd.DataFrame(ours[1]).equals(pd.DataFrame(theirs[1]))
    assert (ours[0][0].frac_coords == theirs[0][0].frac_coords).all()


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match="full, positions, single_point"):
        relax.run(settings("input=x", "output=y", "mode=cell"))
    with pytest.raises(UserError, match="nowhere: no such file"):
        relax.run(settings(f"input={tmp_path}/nowhere", "output=y"))
    with pytest.raises(UserError, match=r"unknown key 'fmx'.*did you mean 'fmax'(.|\n)*known keys: input, output"):
        settings("input=x", "output=y", "fmx=1")
    for wrong in ("fmax=0", "seconds=-1", "steps=0"):
        with pytest.raises(UserError, match="at least"):
            settings("input=x", "output=y", wrong)
    assert settings("input=x", "output=y", "seconds=null").seconds is None
    with pytest.raises(UserError, match=r"output must be given: python -m rlgen.relax output="):
        settings("input=x")
