"""What the benchmark of structure prediction counts as a match, and its figures by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import CRYSTALS
from pymatgen.core import Lattice

from rlgen.spacegroup import from_spacegroup

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import csp


def test_a_crystal_matches_itself_in_any_cell_and_a_displaced_one_by_its_rms():
    truth = CRYSTALS["rutile"]
    moved = truth.copy()
    moved.translate_sites([2], [0.03, 0, 0])  # one of six atoms by 0.138 Å
    fluorite = from_spacegroup("Fm-3m", Lattice.cubic(4.8), ["Ti", "O"], [[0, 0, 0], [0.25] * 3])
    rms = csp.Match().measure([truth, truth * (1, 1, 2), moved, fluorite], [{"truth": truth}] * 4)
    assert rms[:2] == pytest.approx(0, abs=1e-6) and np.isnan(rms[3])
    # The least over translations: the displacements d·(5/6), and -d/6 of the five others.
    displacement = 0.03 * truth.lattice.a
    expected = displacement * np.sqrt(((5 / 6) ** 2 + 5 * (1 / 6) ** 2) / 6) / (truth.volume / 6) ** (1 / 3)
    assert rms[2] == pytest.approx(expected, rel=1e-3)


def test_figures_are_over_all_formulas():
    rms = np.array([[np.nan, 0.2, 0.1], [np.nan] * 3, [0.3, np.nan, np.nan], [np.nan] * 3])
    assert csp.figures(rms) == pytest.approx((0.5, 0.25, 0.2))
    assert csp.figures(rms[:, :1])[0] == 0.25 and np.isnan(csp.figures(rms[1:2])[2])
    assert csp._table(np.array([1.0, 2.0]), (2, 2), np.inf).tolist() == [[1, 2], [np.inf, np.inf]]
