"""Exploring a chemical system: the hull that is drawn, repeats, the order, and what is not to be believed."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import CRYSTALS
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Lattice, Structure
from toy_rewards import rocksalt

from rlgen.exploring import distinct, doubt, ranked
from rlgen.hull import Hull
from rlgen.hull.picture import lower_hull, picture
from rlgen.types import CrystalError, UserError

ENERGIES = {"Al": -3.0, "Ca": -1.5, "Cu": -4.0, "CaAl2": -2.9, "CaAl4": -2.85, "CaCu5": -3.8, "AlCu": -3.7,
            "CaAlCu": -3.2, "AlCu3": -3.8, "CaCu": -2.0}


def test_the_hull_that_is_drawn_is_pymatgens():
    diagram = PhaseDiagram([PDEntry(Composition(f), e * Composition(f).num_atoms) for f, e in ENERGIES.items()])
    stable = {entry.composition.reduced_formula for entry in diagram.stable_entries}
    symbols = ("Al", "Ca", "Cu")
    system = Hull("test", ENERGIES).system(symbols)
    facets = lower_hull(system.fractions, system.energies - system.fractions @ system.energies[:3])
    assert {_formula(system.fractions[i], symbols) for i in np.unique(facets)} == stable
    assert len(facets) == len(diagram.facets)


def _formula(fractions: np.ndarray, symbols: tuple[str, ...]) -> str:
    formula, _ = Composition(dict(zip(symbols, np.round(fractions * 60), strict=True))).get_reduced_formula_and_factor()
    return formula


def test_two_elements_without_a_compound():
    system = Hull("test", {"Al": -3.0, "Ca": -1.5, "CaAl2": -2.0}).system(("Al", "Ca"))
    formation = system.energies - system.fractions @ system.energies[:2]
    assert formation[2] == pytest.approx(0.5)
    assert lower_hull(system.fractions, formation).tolist() == [[0, 1]]


@pytest.mark.parametrize(("elements", "labels"), [(["Ca", "Al"], {"CaAl3"}),
                                                  (["Al", "Ca", "Cu"], {"CaAl3", "Ca2AlCu"})])
def test_pictures_name_what_is_at_or_below_the_hull(elements, labels, tmp_path):
    hull = Hull("test", ENERGIES)
    compositions = [Composition(f) for f in ("CaAl3", "CaAl5", "Ca2AlCu")][: len(elements)]
    above = [-0.05, 0.3, 0.0][: len(elements)]
    figure = picture(hull, elements, compositions, above)
    figure.savefig(tmp_path / "hull.svg")
    figure.savefig(tmp_path / "hull.png")
    axes = figure.axes[0]
    named = {text.get_text() for text in axes.texts} - {"Al", "Ca", "Cu"}
    assert named == labels and (tmp_path / "hull.svg").stat().st_size > 5000
    if len(elements) == 2:  # a point stands where its energy of formation is
        new = next(c for c in axes.collections if c.get_label().startswith("sampled")).get_offsets()
        expected = hull.hull_energy(compositions[0]) - 0.05 - (0.75 * -3.0 + 0.25 * -1.5)
        assert [0.25, pytest.approx(expected)] in [[x, y] for x, y in np.asarray(new).tolist()]


def test_repeats_are_dropped():
    salt, other = rocksalt(), rocksalt("K")
    kept = distinct([salt, other, salt * (1, 1, 2), salt.copy()])
    assert [s.composition.reduced_formula for s in kept] == ["NaCl", "KCl"]


def test_the_lowest_come_first_and_the_doubtful_last():
    crystals = [rocksalt("Li", a=5.1), rocksalt("Na"), rocksalt("K", a=6.3), rocksalt("Na", a=5.7),
                rocksalt("Mg", "O", 4.2), CrystalError("geometry", "lost")]
    columns = {"e_above_hull": [0.05, -0.02, -3.0, -0.01, 0.0, np.nan], "energy": [-3.0] * 6, "converged": [True] * 6,
               "max_force": [0.05] * 4 + [2.0, np.nan], "reason": [""] * 5 + ["lost"]}
    found, table = ranked(crystals, columns, "shipped")
    assert table["formula"].tolist() == ["NaCl", "LiCl", "KCl", "MgO"]  # the second NaCl is the first's repeat
    assert table["e_above_hull"].tolist() == [-0.02, 0.05, -3.0, 0.0]
    assert [d.split(":")[0] for d in table["doubt"]] == ["", "", "low", "force"]
    assert [s.composition.reduced_formula for s in found] == table["formula"].tolist()
    assert not table["novel"][0] and table["space_group"].tolist() == [225] * 4 and table["n_atoms"].tolist() == [2] * 4
    with pytest.raises(UserError, match="no crystal has a relaxed energy; the first: lost"):
        ranked(crystals[-1:], {name: values[-1:] for name, values in columns.items()}, "shipped")


def test_what_the_guards_refuse_is_doubted():
    assert doubt(CRYSTALS["rock salt"], 0.0, 0.05) == ""
    lonely = Structure(Lattice.cubic(12), ["Na", "Cl"], [[0, 0, 0], [0.2, 0, 0]])
    assert doubt(lonely, 0.0, 0.05).startswith("fragments")
    assert doubt(CRYSTALS["rock salt"], -0.6, 0.05) == "low: 0.60 eV/atom below the hull"
