"""The hull against pymatgen's PhaseDiagram, and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from rlgen.hull import Hull, HullError, shipped_scales

SCALES = ["chgnet-0.3.0", "m3gnet-mp-2021.2.8"]
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
    with pytest.raises(HullError, match="no hull is shipped"):
        Hull.load("nobody's")


@pytest.mark.parametrize("scale", SCALES)
def test_equals_phase_diagram(scale):
    hull = Hull.load(scale)
    rng = np.random.default_rng(0)
    systems = sorted((sorted(s) for s in hull._by_system if 2 <= len(s) <= 4), key=str)
    checked = 0
    for system in rng.permutation(len(systems))[:55]:
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
        checked += 1
    assert checked >= 50


@pytest.mark.parametrize("scale", SCALES)
def test_members_of_the_hull_lie_on_it(scale):
    hull = Hull.load(scale)
    for symbols in (("Cl", "Na"), ("O", "Ti"), ("O", "Sr", "Ti")):
        for entry in PhaseDiagram(entries_of(hull, symbols)).stable_entries:
            above = hull.e_above_hull(entry.composition, entry.energy_per_atom, scale=scale)
            assert above == pytest.approx(0, abs=1e-6)
    for formula in ("NaCl", "TiO2"):
        assert hull.hull_energy(Composition(formula)) < -3


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


def test_one_composition_is_solved_once(toy):
    for formula in ("Na3Cl", "Na6Cl2", "Na9Cl3"):
        toy.hull_energy(Composition(formula))
    assert toy._remember.cache_info().misses == 1
