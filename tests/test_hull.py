"""The hull against pymatgen's PhaseDiagram, and what it refuses."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Lattice

import rlgen.hull as hull_module
import rlgen.hull.__main__ as hull_main
import rlgen.hull.build as build_module
from rlgen import config
from rlgen.energies.elements import MadeCrystal
from rlgen.hull import Hull, HullError, built, shipped_scales
from rlgen.hull.build import PointEnergy, Reference, write
from rlgen.hull.mixture import ChemicalSystem
from rlgen.spacegroup import from_spacegroup
from rlgen.types import UserError

SCALES = ["chgnet-0.3.0", "m3gnet-mp-2021.2.8", "megnet-mp-2018.6.1", "tensornet-matpes-pbe-2025.1"]
TOY = {"Na": -1.0, "Cl2": -2.0, "NaCl": -3.5, "NaCl3": -2.0, "O2": -5.0}


@pytest.fixture
def toy() -> Hull:
    return Hull("toy", TOY)


def entries_of(hull: Hull, symbols: tuple[str, ...]) -> list[PDEntry]:
    return [
        PDEntry(Composition(fractions), energy)
        for size in range(1, len(symbols) + 1)
        for system in itertools.combinations(symbols, size)
        for fractions, energy in hull._by_system.get(frozenset(system), ())
    ]


def test_known_distances(toy):
    assert toy.e_above_hull(Composition("NaCl"), -3.5, scale="toy") == pytest.approx(0)
    assert toy.e_above_hull(Composition("Na2Cl2"), -3.6, scale="toy") == pytest.approx(-0.1)
    # Na3Cl = 1/2 NaCl + 1/2 Na by atoms
    assert toy.hull_energy(Composition("Na3Cl")) == pytest.approx((-3.5 - 1.0) / 2)
    # NaCl3 lies above the tie line of NaCl and Cl2.
    assert toy.e_above_hull(Composition("NaCl3"), -2.0, scale="toy") == pytest.approx(-2.0 + (3.5 + 2.0) / 2)
    assert toy.e_above_hull(Composition("Na"), -0.9, scale="toy") == pytest.approx(0.1)


def test_missing_terminals_are_named(toy):
    with pytest.raises(HullError, match="K, Zr"):
        toy.e_above_hull(Composition("KZrCl"), -3.0, scale="toy")


def test_another_scale_is_refused(toy):
    with pytest.raises(HullError, match=r"chgnet-0\.3\.0.*toy"):
        toy.e_above_hull(Composition("NaCl"), -3.5, scale="chgnet-0.3.0")


@pytest.mark.parametrize("scale", SCALES)
def test_equals_phase_diagram(scale):
    """benchmarks/hull.py does the same with 500 systems."""
    hull = Hull.load(scale)
    rng = np.random.default_rng(0)
    systems = sorted((sorted(s) for s in hull._by_system if 2 <= len(s) <= 5), key=str)
    for system in rng.permutation(len(systems))[:40]:
        symbols = tuple(systems[system])
        diagram = PhaseDiagram(entries_of(hull, symbols))
        for amounts in (np.ones(len(symbols)), rng.integers(1, 6, len(symbols))):
            composition = Composition(dict(zip(symbols, amounts.tolist(), strict=True)))
            assert hull.hull_energy(composition) == pytest.approx(
                diagram.get_hull_energy_per_atom(composition), abs=1e-6
            )
        entry = PDEntry(Composition(dict.fromkeys(symbols, 1)), -2.0 * len(symbols))
        ours = hull.e_above_hull(entry.composition, -2.0, scale=scale)
        assert ours == pytest.approx(diagram.get_e_above_hull(entry, allow_negative=True, check_stable=False), abs=1e-6)


def test_degenerate_programmes_end():
    """Ties everywhere: compositions on vertices and edges of equal simplices, where the simplex method can circle."""
    from scipy.optimize import linprog

    rng = np.random.default_rng(1)
    for n in (2, 3, 5, 8):
        fractions = np.vstack([np.eye(n), rng.integers(0, 3, (60, n)) + np.eye(n)[rng.integers(0, n, 60)]])
        fractions /= fractions.sum(1, keepdims=True)
        energies = np.round(rng.normal(-1, 0.3, len(fractions)), 1)
        system = ChemicalSystem(fractions, energies)
        targets = np.vstack([fractions[(fractions > 0).all(axis=1)][:10], np.full(n, 1 / n), rng.dirichlet(np.ones(n))])
        for target in np.vstack([targets, targets]):  # once found, and once from the facets that are kept
            best = linprog(energies, A_eq=fractions.T, b_eq=target, bounds=(0, None), method="highs").fun
            assert system.lowest(target) == pytest.approx(best, abs=1e-9)


def test_blands_rule_finds_the_same(monkeypatch):
    hull = Hull.load(SCALES[0])
    composition = Composition("BaTiO3")
    expected = hull.hull_energy(composition)
    monkeypatch.setattr("rlgen.hull.mixture.STEEPEST", 0)
    assert Hull.read(Path(hull_module.__file__).parent.parent / "assets" / f"hull_{SCALES[0]}.parquet").hull_energy(
        composition
    ) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale", SCALES)
def test_members_of_the_hull_lie_on_it(scale):
    hull = Hull.load(scale)
    for symbols in (("Cl", "Na"), ("O", "Ti"), ("O", "Sr", "Ti")):
        for entry in PhaseDiagram(entries_of(hull, symbols)).stable_entries:
            above = hull.e_above_hull(entry.composition, entry.energy_per_atom, scale=scale)
            assert above == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_every_reference_is_on_the_hull_or_above_it(scale):
    hull = Hull.load(scale)
    entries = [(Composition(f), e) for found in list(hull._by_system.values())[::15] for f, e in found]
    above = np.array([hull.e_above_hull(composition, energy, scale=scale) for composition, energy in entries])
    assert above.min() == 0.0  # exactly: a member's own energy is taken, not a sum that rounds
    stable = above < 1e-6
    assert (above[stable] == 0).all() and 0.2 < stable.mean() < 0.9


@pytest.mark.parametrize("scale", SCALES)
def test_shipped_hulls_know_every_common_element(scale):
    assert scale in shipped_scales()
    hull = Hull.load(scale)
    assert Hull.load(scale) is hull
    assert len(hull) > 25_000
    assert len(hull.elements) >= 88
    assert hull.provenance["scale"] == scale
    assert set(hull.sources.values()) >= {"mp20"}
    assert any(source.startswith("made:") for source in hull.sources.values())


def test_facets_are_found_once_and_kept(toy):
    for formula in ("Na3Cl", "Na6Cl2", "Na9Cl3", "Na5Cl"):
        toy.hull_energy(Composition(formula))
    assert toy.system.cache_info().misses == 1
    assert len(toy.system(("Cl", "Na"))._facets) == 1
    toy.hull_energy(Composition("NaCl5"))
    assert len(toy.system(("Cl", "Na"))._facets) == 2


def test_a_hull_is_found_by_its_scale_or_its_file(tmp_path, monkeypatch):
    scale = "my.module:calculator v1/2"
    monkeypatch.setenv("RLGEN_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"python -m rlgen\.hull"):
        Hull.load(scale)
    assert built(scale).parent == tmp_path / "hull" and built(scale).name == "hull_my.module-calculator-v1-2.parquet"
    references = [Reference("NaCl", -3.0, "mine"), Reference("NaCl", -3.4, "mine"), Reference("Na", -1.0, "made:bcc")]
    for path in (built(scale), tmp_path / "other.parquet"):
        assert write(path, scale, references, {"data": "mine"}) == 2
    hull = Hull.load(scale)
    assert hull.hull_energy(Composition("Na")) == -1 and hull.sources == {"NaCl": "mine", "Na": "made:bcc"}
    assert str(hull) == f"2 formulas of mine ({built(scale)})"
    assert Hull.load(scale, tmp_path / "other.parquet").origin == str(tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"other\.parquet: a hull of my\.module"):
        Hull.load("chgnet-0.3.0", tmp_path / "other.parquet")
    with pytest.raises(UserError, match="no hull as"):
        Hull.load(scale, tmp_path / "missing.parquet")
    assert str(Hull.load("chgnet-0.3.0")) == "30,519 formulas of mp20 (shipped)"


EMT = "ase.calculators.emt:EMT"


def alloys(path: Path, n: int) -> list[str]:
    """A data set of n ordered alloys without any element's own crystal; returns their formulas."""
    pairs = list(itertools.combinations(("Al", "Cu", "Ag", "Au", "Ni"), 2))[:n]
    crystals = [from_spacegroup("Pm-3m", Lattice.cubic(3.1), p, [[0, 0, 0], [0.5, 0.5, 0.5]]) for p in pairs]
    rows = [{"material_id": f"x{i}", "cif": crystal.to(fmt="cif")} for i, crystal in enumerate(crystals)]
    pd.DataFrame(rows).to_csv(path, index=False)
    return sorted(crystal.composition.reduced_formula for crystal in crystals)


def settings_of(folder: Path, **more: object) -> list[str]:
    given = {"data": folder / "alloys.csv", "energy": EMT, "splits": "train,val,test", "workers": 0} | more
    return [f"{key}={value}" for key, value in given.items()]


def test_a_build_that_is_killed_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RLGEN_CACHE", str(tmp_path / "cache"))
    formulas = alloys(tmp_path / "alloys.csv", 6)
    # The run dies, as if killed by the system, in the middle of its third piece.
    code = (
        "import os, signal; from rlgen import config; from rlgen.hull import build\n"
        "from rlgen.hull.__main__ import run\n"
        "old = build.PointEnergy.measure_with_reasons; calls = []\n"
        "def measure(*given):\n"
        "    calls.append(1); len(calls) > 2 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return old(*given)\n"
        "build.PointEnergy.measure_with_reasons = measure; config.main('hull', run)"
    )
    settings = settings_of(tmp_path, checkpoint_every=1, output=tmp_path / "hull.parquet")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *settings], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "hull.parquet").exists()
    assert len(list((tmp_path / "cache" / "hull").glob("*/*.parquet"))) == 2

    asked = []
    measure = PointEnergy.measure_with_reasons

    def watched(self, structures, conditions):
        asked.extend(structure.composition.reduced_formula for structure in structures)
        return measure(self, structures, conditions)

    monkeypatch.setattr(PointEnergy, "measure_with_reasons", watched)
    monkeypatch.setattr(build_module, "make", lambda symbol, potential: MadeCrystal(symbol, "fcc", 0.1, None))
    hull_main.run(config.load("hull", settings))
    assert "6 crystals, 2 energies are there already" in capsys.readouterr().out and len(asked) == 4
    resumed = Hull.load(EMT, tmp_path / "hull.parquet")
    assert sorted(f for f, source in resumed.sources.items() if source == "alloys") == formulas
    made = {formula for formula, source in resumed.sources.items() if source == "made:fcc"}
    assert made == {"Al", "Cu", "Ag", "Au", "Ni"}

    # The uninterrupted build, into the cache, from where the hull is taken; and none of it is computed twice.
    monkeypatch.setenv("RLGEN_CACHE", str(tmp_path / "another"))
    hull_main.run(config.load("hull", settings_of(tmp_path)))
    assert "taken for" in capsys.readouterr().out
    whole = Hull.load(EMT)
    assert whole._by_system == resumed._by_system and len(asked) == 10
    hull_main.run(config.load("hull", settings_of(tmp_path)))
    assert "6 energies are there already" in capsys.readouterr().out and len(asked) == 10


def test_workers_build_the_same_and_failures_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build_module, "make", lambda symbol, potential: None)
    alloys(tmp_path / "alloys.csv", 3)
    with (tmp_path / "alloys.csv").open("a") as file:
        strange = from_spacegroup("Pm-3m", Lattice.cubic(4), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        pd.DataFrame([{"material_id": "salt", "cif": strange.to(fmt="cif")}]).to_csv(file, index=False, header=False)
    found = []
    for workers in (0, 1):
        monkeypatch.setenv("RLGEN_CACHE", str(tmp_path / f"cache{workers}"))
        path = tmp_path / f"{workers}.parquet"
        hull_main.run(config.load("hull", settings_of(tmp_path, workers=workers, output=path)))
        found.append(Hull.read(path))
        told = capsys.readouterr().out
        assert "failed: salt: energy:" in told
        assert "Al: no structure relaxed; crystals with it will have no hull" in told
    assert found[0]._by_system == found[1]._by_system and len(found[0]) == 3
    assert found[0].provenance["failed"] == 1
    with pytest.raises(HullError, match="no crystal of the element Al, Cu"):
        found[0].hull_energy(Composition("AlCu"))
    with pytest.raises(UserError, match="has train, val, test"):
        hull_main.run(config.load("hull", settings_of(tmp_path, splits="trian")))
