"""The stability reward: its transform, its failures, and that real crystals score high."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pymatgen.core import Composition, Lattice, Structure

from rewards.base import Reward
from rewards.stability import Stability
from rlgen.energies import known, load_potential
from rlgen.hull import Hull
from rlgen.types import UserError

BROKEN = Structure(Lattice.cubic(20), ["Na"], [[0, 0, 0]])
NO_HULL = Structure(Lattice.cubic(4), ["Po"], [[0, 0, 0]])


@pytest.fixture
def reward() -> Stability:
    return Stability(energy="chgnet")


def test_keeps_the_contract(reward):
    assert isinstance(reward, Reward)
    assert reward.per_sample and reward.name == "stability" and reward.unit == "eV/atom"
    with pytest.raises(dataclasses.FrozenInstanceError):
        reward.width = 1.0


def test_transform_falls_smoothly_from_one_to_zero(reward):
    raw = np.linspace(-0.5, 1.0, 601)
    score = reward.transform(raw)
    assert np.all((score >= 0) & (score <= 1))
    assert np.all(score[raw <= 0] == 1)
    assert np.all(score[raw >= 0.5] == 0)
    inside = score[(raw > 0) & (raw < 0.5)]
    assert np.all(np.diff(inside) < 0)
    assert np.abs(np.diff(score)).max() < 0.01  # no jump
    assert reward.transform(np.array([0.25])) == pytest.approx(0.5)


def test_transform_keeps_nan(reward):
    score = reward.transform(np.array([0.1, np.nan, -0.1]))
    assert np.isnan(score[1]) and np.isfinite(score[[0, 2]]).all()
    assert reward.transform(np.array([])).shape == (0,)


@pytest.mark.parametrize("mode", ["single_point", "relax"])
def test_measures_real_crystals_and_names_failures(mode):
    reward = Stability(energy="chgnet", mode=mode, steps=20)
    squeezed = known.cell("NaCl")
    squeezed.scale_lattice(squeezed.volume * 0.8)
    crystals = [known.cell("NaCl"), BROKEN, known.cell("TiO2"), NO_HULL, squeezed]
    raw, reasons = reward.measure_with_reasons(crystals, [{}] * len(crystals))
    assert raw.shape == (5,)
    assert reward.transform(raw)[[0, 2]] == pytest.approx(1, abs=0.05)
    assert np.isnan(raw[[1, 3]]).all()
    assert reasons[1].startswith("isolated") and "Po" in reasons[3]
    assert [reason == "" for reason in reasons] == [True, False, True, False, True]
    if mode == "relax":
        assert raw[4] == pytest.approx(raw[0], abs=0.005)
    else:
        assert raw[4] > raw[0] + 0.05
    np.testing.assert_array_equal(reward.measure(crystals, [{}] * len(crystals)), raw)


def test_a_hole_in_the_potential_is_not_paid(reward, monkeypatch):
    potential = load_potential("chgnet")
    low = Hull.load(potential.scale).hull_energy(Composition("NaCl")) - 0.8
    monkeypatch.setattr(Stability, "_energies", lambda self, structures, potential: [(low, ""), (low + 0.5, "")])
    raw, reasons = reward.measure_with_reasons([known.cell("NaCl")] * 2, [{}, {}])
    assert np.isnan(raw[0]) and reasons[0].startswith("unphysical")
    assert raw[1] == pytest.approx(-0.3) and reasons[1] == ""


def test_bad_parameters_are_named():
    with pytest.raises(UserError, match="single_point, relax"):
        Stability(mode="relaxed")
    with pytest.raises(UserError, match="width"):
        Stability(width=0)
