"""Metrics against numbers computed by hand, and what the intervals promise."""

import math

import numpy as np
import pytest

from rlgen import metrics


def rng(seed=0):
    return np.random.default_rng(seed)


def test_share_counts_all_samples():
    estimate = metrics.share([True, False, False, True, False], rng())
    assert estimate.value == pytest.approx(0.4)
    assert 0 <= estimate.low < 0.4 < estimate.high <= 1


def test_share_is_reproducible_and_formats():
    flags = np.arange(100) < 38
    first, again = metrics.share(flags, rng(3)), metrics.share(flags, rng(3))
    assert first == again
    assert metrics.Estimate(0.382, 0.331, 0.435).percent() == "38.2 % [33.1, 43.5]"
    assert metrics.Estimate(29.07, 27.0, 31.25).number() == "29.1 [27.0, 31.2]"


def test_share_equals_plain_resampling():
    flags = np.arange(60) < 21
    plain = flags[rng(1).integers(60, size=(20_000, 60))].mean(axis=1)
    low, high = np.quantile(plain, [0.025, 0.975])
    estimate = metrics.share(flags, rng(2), resamples=20_000)
    assert estimate.low == pytest.approx(low, abs=1 / 60 + 1e-9)
    assert estimate.high == pytest.approx(high, abs=1 / 60 + 1e-9)


def test_share_without_spread_keeps_a_width():
    none, every = metrics.share([False] * 10, rng()), metrics.share([True] * 10, rng())
    bound = 1 - 0.025**0.1  # (1 - bound)^10 = 0.025
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(bound)
    assert (every.value, every.high) == (1, 1) and every.low == pytest.approx(1 - bound)


def test_nothing_measured_is_nan():
    assert math.isnan(metrics.share([], rng()).value)
    assert math.isnan(metrics.mean([math.nan], rng()).value)
    assert math.isnan(metrics.diversity([(), ()], rng()).value)
    assert math.isnan(metrics.exp_entropy([]))
    assert metrics.NOTHING.percent() == metrics.NOTHING.number() == "–"


def test_share_interval_covers_the_truth():
    data = rng(5).random((400, 200)) < 0.3
    covered = 0
    for i, flags in enumerate(data):
        estimate = metrics.share(flags, rng(i), resamples=500)
        covered += estimate.low <= 0.3 <= estimate.high
    assert 0.90 <= covered / 400 <= 0.985


def test_mean_interval_covers_the_truth():
    data = rng(6).normal(9.2, 4.0, size=(300, 100))
    hits = 0
    for i, values in enumerate(data):
        estimate = metrics.mean(values, rng(i), resamples=400)
        hits += estimate.low <= 9.2 <= estimate.high
    assert 0.89 <= hits / 300 <= 0.985


def test_mean_leaves_out_what_was_not_measured():
    assert metrics.mean([2.0, math.nan, 4.0], rng()).value == pytest.approx(3.0)


def test_median_is_not_moved_by_an_outlier():
    estimate = metrics.median([0.1, 0.2, 0.3, 0.4, 90.0, math.nan], rng())
    assert estimate.value == pytest.approx(0.3)
    assert 0.1 <= estimate.low < 0.3 < estimate.high <= 90


def test_exp_entropy_by_hand():
    assert metrics.exp_entropy(["a"] * 7) == pytest.approx(1.0)
    assert metrics.exp_entropy([1, 2, 3, 4]) == pytest.approx(4.0)
    # p = 1/2, 1/4, 1/4: H = 1.5 ln 2
    assert metrics.exp_entropy(["a", "a", "b", "c"]) == pytest.approx(2**1.5)


def test_diversity_of_elements_counts_crystals():
    # Na 2, Cl 2, K 1 over three crystals; the undecodable one carries nothing.
    p = np.array([2, 2, 1]) / 5
    expected = math.exp(-(p * np.log(p)).sum())
    estimate = metrics.diversity([{"Na", "Cl"}, {"K", "Cl"}, {"Na"}, ()], rng())
    assert estimate.value == pytest.approx(expected)


@pytest.mark.parametrize("labels_per_sample", [1, 2])
def test_diversity_interval_holds_its_value_even_when_labels_are_rare(labels_per_sample):
    draws = rng(7).integers(500, size=(200, labels_per_sample))
    estimate = metrics.diversity([set(map(int, row)) for row in draws], rng(1))
    assert estimate.low < estimate.value < estimate.high
    assert estimate.value == pytest.approx(metrics.exp_entropy(x for row in draws for x in set(map(int, row))))


def test_diversity_does_not_depend_on_hash_order():
    sets = [{"Na", "Cl"}, {"K", "Cl", "O"}, {"O", "Na"}]
    assert metrics.diversity(sets, rng(4)) == metrics.diversity([sorted(one) for one in sets], rng(4))


def test_chunks_do_not_change_the_result(monkeypatch):
    values = rng(8).random(50)
    whole = metrics.mean(values, rng(1))
    monkeypatch.setattr(metrics, "_CHUNK", 1000)
    assert metrics.mean(values, rng(1)) == whole


def test_distinct_labels_per_thousand_samples():
    rng = np.random.default_rng(0)
    labels = ["a"] * 10 + ["b"] * 5 + ["c"] + [None] * 4
    found = metrics.distinct(labels, rng)
    assert found.value == pytest.approx(3 / 20 * 1000) and 100 <= found.low < found.value < found.high <= 200
    assert metrics.distinct([None] * 5, rng).value == 0
    assert metrics.distinct([*range(50), 0], rng).high == 1000  # there cannot be more labels than samples
    assert math.isnan(metrics.distinct([], rng).value)


def test_distance_of_distributions():
    from scipy.stats import wasserstein_distance

    rng = np.random.default_rng(0)
    values, real = rng.normal(size=200), rng.normal(0.5, 1.3, size=150)
    found = metrics.wasserstein([*values, np.nan], real, rng)
    assert found.value == pytest.approx(wasserstein_distance(values, real))
    assert 0 < found.low < found.value < found.high < 2 * found.value
    assert metrics.wasserstein([1.0, 1.0], [3.0], rng).value == pytest.approx(2)
    assert metrics.wasserstein([1, 2, 3], [3, 2, 1], rng).value == pytest.approx(0)
    assert math.isnan(metrics.wasserstein([np.nan], [1.0], rng).value)


def test_the_interval_of_a_distance_covers_it():
    """Of many samples of one distribution about 95 % of the intervals hold the distance of that distribution."""
    rng = np.random.default_rng(1)
    real = np.linspace(-2, 2, 401)
    hits = 0
    for _ in range(200):
        found = metrics.wasserstein(rng.uniform(-1, 3, 100), real, rng, resamples=300)
        hits += found.low <= 1 <= found.high  # shifted by 1
    assert 180 <= hits <= 200


def test_within_looks_both_ways():
    a, b = np.array([[0.0, 0], [5, 5], [9, 9]]), np.array([[0.5, 0], [9, 8]])
    near_a, near_b = metrics.within(a, b, 1.0)
    assert near_a.tolist() == [True, False, True] and near_b.tolist() == [True, True]
    near_a, near_b = metrics.within(np.repeat(a, 700, axis=0), b, 0.6)
    assert near_a.sum() == 700 and near_b.tolist() == [True, False]
