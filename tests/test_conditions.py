"""Properties that are asked for: their scales, their tokens in prompts, and what a policy makes of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlgen.conditions import CRYSTAL_SYSTEMS, SYSTEM, Category, Transform, crystal_system, groups_of, read
from rlgen.types import UserError

# Scales


def test_a_linear_scale_by_hand():
    scale = Transform("linear", 2.0, 10.0, bins=4)  # bins of 2: 2-4, 4-6, 6-8, 8-10
    values = [-5, 2, 3.99, 4, 7, 9.99, 10, 50]
    assert [scale.index(v) for v in values] == [0, 0, 0, 1, 2, 3, 3, 3]
    assert scale.scaled([2, 4, 10, 14]).tolist() == [0, 0.25, 1, 1.5]
    assert scale.unscaled([0, 0.25, 1, 1.5]).tolist() == [2, 4, 10, 14]
    assert [scale.value(i) for i in range(4)] == [3, 5, 7, 9]


def test_a_logarithmic_scale_by_hand():
    scale = Transform("log", 0.1, 1000.0, bins=4)  # a decade each
    assert [scale.index(v) for v in (-1, 0, 0.1, 0.99, 1.01, 50, 999, 1e9)] == [0, 0, 0, 0, 1, 2, 3, 3]
    assert scale.scaled([0, -3, 0.1, 1, 1000, 1e4]).tolist() == pytest.approx([0, 0, 0, 0.25, 1, 1.25])
    assert scale.unscaled(0.25) == pytest.approx(1.0) and scale.value(1) == pytest.approx(10**0.5)


@pytest.mark.parametrize("scale", [Transform("linear", -3, 12.5, 64), Transform("log", 1e-3, 7.0, 33)])
def test_values_come_back_within_their_bin(scale):
    for i in range(scale.bins):
        assert scale.index(scale.value(i)) == i
    inside = np.random.default_rng(0).uniform(scale.low, scale.high, 200)
    assert scale.unscaled(scale.scaled(inside)) == pytest.approx(inside)
    off = [abs(float(scale.scaled(scale.value(scale.index(v))) - scale.scaled(v))) for v in inside]
    assert max(off) <= 0.5 / scale.bins + 1e-9


def test_a_scale_is_fitted_to_what_is_known():
    values = np.concatenate([np.linspace(0, 10, 1001), [math.nan] * 500, [math.inf]])
    scale = Transform.fit(values)
    assert (scale.kind, scale.bins) == ("linear", 64)
    assert scale.low == pytest.approx(0.01) and scale.high == pytest.approx(9.99)
    assert Transform.fit([*[2.0] * 5000, 7.0]) == Transform("linear", 2.0, 7.0)  # the percentiles are equal
    spread = np.logspace(-2, 4, 1000)
    assert Transform.fit(spread).kind == "log" and Transform.fit([0.0, *spread]).kind == "linear"
    zeros = Transform.fit([0.0] * 10 + [1.0, 10.0], kind="log", bins=8)
    assert zeros.low == pytest.approx(1, rel=0.01) and zeros.high == pytest.approx(10, rel=0.01)
    assert Transform.fit(values, "linear", 16, low=-1, high=2) == Transform("linear", -1, 2, 16)


@pytest.mark.parametrize(("values", "kind", "message"), [
    ([], None, "no values"), ([math.nan, math.nan], None, "no values"), ([0, -1], "log", "no positive values"),
    ([3, 3, math.nan], None, "all 2 values are 3")])
def test_nothing_to_fit_a_scale_to_is_the_users_mistake(values, kind, message):
    with pytest.raises(UserError, match=message):
        Transform.fit(values, kind)


@pytest.mark.parametrize(("fields", "message"), [
    ({"kind": "square", "low": 0, "high": 1}, "known: linear, log, category"),
    ({"kind": "linear", "low": 1, "high": 1}, "low must be less"),
    ({"kind": "log", "low": 0, "high": 1}, "above 0"),
    ({"kind": "linear", "low": 0, "high": 1, "bins": 1}, "at least 2"),
    ({"kind": "linear", "low": 0, "high": 1, "bin": 1}, "bin"),
    ({"kind": "category", "names": ["a", "a"]}, "two names"), (7, "must have kind")])
def test_wrong_scales_are_named(fields, message):
    with pytest.raises(UserError, match=f"conditions.density.*{message}"):
        read({"density": fields})


def test_scales_are_plain_dicts_in_files():
    scales = {"density": Transform("log", 0.5, 20.0, 32), "crystal_system": SYSTEM}
    assert read({name: scale.to_dict() for name, scale in scales.items()}) == scales
    assert read(scales) == scales


@pytest.mark.parametrize("value", ["much", None, math.nan, "nan"])
def test_what_is_no_number_has_no_bin(value):
    with pytest.raises(UserError, match="no number"):
        Transform("linear", 0, 1).index(value)


def test_crystal_systems_are_those_of_the_international_tables():
    first = {"triclinic": 1, "monoclinic": 3, "orthorhombic": 16, "tetragonal": 75, "trigonal": 143, "hexagonal": 168,
             "cubic": 195}
    assert tuple(first) == CRYSTAL_SYSTEMS
    assert [groups_of(name).start for name in CRYSTAL_SYSTEMS] == list(first.values())
    assert [g for name in CRYSTAL_SYSTEMS for g in groups_of(name)] == list(range(1, 231))
    assert all(CRYSTAL_SYSTEMS[crystal_system(g)] == name for name in CRYSTAL_SYSTEMS for g in groups_of(name))
    with pytest.raises(UserError, match="'square' is not one of triclinic"):
        Category(CRYSTAL_SYSTEMS).index("square")
