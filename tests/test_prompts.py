"""What is asked: as often as the data have it, or flattened, and with parts left open."""

import numpy as np
import pytest

from policies.prompts import PromptTable

TABLE = PromptTable.of([225] * 6 + [221] * 3 + [1], [[11, 17]] * 6 + [[22, 38, 8, 8, 8]] * 3 + [[29, 29]])


def pairs(conditions):
    found = [(c["space_group"], c["n_atoms"]) for c in conditions]
    return {pair: found.count(pair) / len(found) for pair in set(found)}


@pytest.mark.parametrize(("power", "shares"), [(1, (0.6, 0.3, 0.1)), (0, (1 / 3, 1 / 3, 1 / 3)),
                                               (0.5, (0.4728, 0.3343, 0.1930))])
def test_power_of_the_distribution(power, shares):
    expected = dict(zip([(225, 2), (221, 5), (1, 2)], shares, strict=True))
    assert TABLE.shares(power) == pytest.approx(expected, abs=1e-4)
    drawn = pairs(TABLE.sample(20_000, np.random.default_rng(0), power=power))
    assert drawn == pytest.approx(expected, abs=0.012)  # 3.5 standard errors


def test_parts_are_asked_for_as_often_as_told():
    conditions = TABLE.sample(4000, np.random.default_rng(0), keep={"space_group": 1, "n_atoms": 0, "element": 0.25})
    assert all("space_group" in c and "n_atoms" not in c for c in conditions)
    assert np.mean(["element" in c for c in conditions]) == pytest.approx(0.25, abs=0.03)
    nothing = dict.fromkeys(("space_group", "n_atoms", "element"), 0.0)
    assert TABLE.sample(5, np.random.default_rng(0), keep=nothing) == [{}] * 5
