"""Properties of crystals: values that can be worked out by hand, on crystals of every system."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from rlgen.conditions import CRYSTAL_SYSTEMS, crystal_system
from rlgen.properties import PROPERTIES, hhi, known, measure
from rlgen.types import UserError

#: name in `conftest.CRYSTALS` -> space group, crystal system, atoms in the primitive cell
SYMMETRY = {
    "rock salt": (225, "cubic", 2),
    "diamond": (227, "cubic", 2),
    "perovskite": (221, "cubic", 5),
    "hcp": (194, "hexagonal", 2),
    "wurtzite": (186, "hexagonal", 4),
    "quartz": (152, "trigonal", 9),
    "rutile": (136, "tetragonal", 6),
    "GdFeO3": (62, "orthorhombic", 20),
    "baddeleyite": (14, "monoclinic", 12),
    "triclinic": (1, "triclinic", 3),
}


@pytest.mark.parametrize("name", SYMMETRY)
def test_symmetry_whatever_the_cell(crystals, name):
    for structure in (crystals[name], crystals[name] * (2, 1, 1)):
        group, system, atoms = SYMMETRY[name]
        assert measure("space_group", structure) == group
        assert CRYSTAL_SYSTEMS[int(measure("crystal_system", structure))] == system
        assert measure("n_atoms", structure) == atoms


def test_rock_salt_by_hand(crystals):
    salt = crystals["rock salt"]
    mass, volume = 4 * (22.98976928 + 35.453), 5.64**3
    assert measure("density", salt) == pytest.approx(mass * 1.66053907 / volume, rel=1e-6)
    assert measure("volume_per_atom", salt) == pytest.approx(volume / 8)
    assert measure("n_elements", salt) == 2
    sodium = 22.98976928 / (22.98976928 + 35.453)
    assert measure("hhi_production", salt) == pytest.approx(1100 * sodium + 1500 * (1 - sodium))
    assert measure("hhi_reserve", salt) == pytest.approx(500 * sodium + 1500 * (1 - sodium))


def test_hhi_of_all_elements_is_as_another_package_has_it():
    """pymatgen and smact each carry Gaultois et al.'s table: one slip of the pen would show."""
    import smact
    from pymatgen.core import Composition

    lines = (Path(smact.__file__).parent / "data" / "hhi.txt").read_text().splitlines()
    theirs = {row[0]: (float(row[1]), float(row[2])) for line in lines if (row := line.split()) and line[0] != "#"}
    assert len(theirs) == 77 and theirs["Y"] == (9800, 2600)
    assert {symbol: hhi(Composition(symbol)) for symbol in theirs} == theirs


def test_crystal_systems_begin_and_end_where_the_tables_say():
    from pymatgen.symmetry.groups import SpaceGroup

    for number in (1, 2, 3, 15, 16, 74, 75, 142, 143, 167, 168, 194, 195, 230):
        assert CRYSTAL_SYSTEMS[crystal_system(number)] == SpaceGroup.from_int_number(number).crystal_system


def test_what_a_crystal_does_not_have_is_nan(crystals):
    xenon = Structure(Lattice.cubic(6.2), ["Xe"], [[0, 0, 0]])
    assert math.isnan(measure("hhi_production", xenon)) and math.isnan(measure("hhi_reserve", xenon))
    assert measure("density", xenon) > 0
    flat = Structure(Lattice.from_parameters(1e-6, 5, 5, 90, 90, 90), ["Na"], [[0, 0, 0]])
    assert math.isnan(measure("space_group", flat)) or measure("space_group", flat) >= 1  # never raises


def test_wrong_names_list_the_right_ones(crystals):
    with pytest.raises(UserError, match="unknown property 'densty'; known are density, volume_per_atom"):
        known("densty")
    with pytest.raises(UserError, match=r"band_gap does not follow from the structure.*rlgen.annotate.*space_group"):
        measure("band_gap", crystals["diamond"])


def test_every_property_is_described():
    for name, one in PROPERTIES.items():
        assert one.meaning and (one.width > 0) == (one.kind == "number"), name


def test_real_crystals_have_all(mp20):
    measured = [name for name, one in PROPERTIES.items() if one.measure]
    values = np.array([[measure(name, structure) for name in measured] for structure in mp20])
    share = dict(zip(measured, np.isfinite(values).mean(0), strict=True))
    assert all(share[name] == 1 for name in measured if not name.startswith("hhi"))
    assert share["hhi_production"] > 0.9  # noble gases, actinides and a few more have none
