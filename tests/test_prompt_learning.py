"""Which prompts are worth asking: estimated from what they earn, and asked more often within bounds of diversity."""

from __future__ import annotations

import numpy as np
import pytest

from policies.prompts import PromptTable
from rlgen.asking import Asking
from rlgen.config import load
from rlgen.prompt_learning import SHRINK, PromptLearning
from rlgen.types import UserError

#: Eight kinds of crystals, equally many: space group 225 or 221, two sizes, NaCl or CaTe.
KINDS = [(group, n, salt) for group in (225, 221) for n in (2, 4) for salt in ([11, 17], [20, 52])]
TABLE = PromptTable.of([k[0] for k in KINDS] * 25, [k[2] * (k[1] // 2) for k in KINDS] * 25)


def earning(conditions):
    """0.8 in 225 and 0.2 in 221; 0.1 more with Na or Cl."""
    return np.array([0.2 + 0.6 * (c["space_group"] == 225) + 0.1 * (c["element"] in ("Na", "Cl")) for c in conditions])


def test_values_by_hand():
    learning = PromptLearning(TABLE)
    learning.observe([{"space_group": 225}] * 8 + [{"space_group": 221}] * 8, np.array([1.0] * 8 + [0.0] * 8), 0.9)
    # Ridge with a free mean m = 0.5 and effects ± e: 8 samples of residual 0.5 - e against SHRINK · e.
    effect = 8 * 0.5 / (8 + SHRINK)
    assert learning.values()[TABLE.space_group == 225] == pytest.approx(effect)
    assert learning.values()[TABLE.space_group == 221] == pytest.approx(-effect)


@pytest.mark.parametrize("keep", [0.95, 0.8, 0.6])
def test_what_earns_more_is_asked_more_as_far_as_diversity_stays(keep):
    learning, rng = PromptLearning(TABLE), np.random.default_rng(0)
    before = earning(TABLE.sample(4000, rng)).mean()
    for _ in range(10):
        conditions = learning.current.sample(64, rng)
        learning.observe(conditions, earning(conditions) + rng.normal(0, 0.3, 64), keep)
    kept = learning.diversity(learning.current.shares_of_rows()) / learning.diversity(TABLE.shares_of_rows())
    assert keep - 1e-6 <= kept.min() <= keep + 0.01  # all that was left was used
    assert earning(learning.current.sample(4000, rng)).mean() > before + 0.05
    by_group = np.bincount(TABLE.space_group, learning.current.shares_of_rows())
    # Two shares p and 1 - p have an exp-entropy between 1 and 2.
    p = by_group[225]
    assert p > 0.5 and by_group[221] > 0 and p + by_group[221] == pytest.approx(1)
    scalars = learning.scalars()
    assert scalars["prompts/kl"] > 0 and scalars["prompts/space_groups"] == pytest.approx(
        np.exp(-p * np.log(p) - (1 - p) * np.log(1 - p)) / 2, rel=1e-5)


def test_little_evidence_moves_little():
    learning = PromptLearning(TABLE)
    learning.observe([{"space_group": 225}, {"space_group": 221}], np.array([1.0, 0.0]), 0.5)
    assert 1 < learning.current.weights.max() / learning.current.weights.min() < 1.8


def test_without_differences_nothing_moves():
    learning, rng = PromptLearning(TABLE), np.random.default_rng(0)
    conditions = TABLE.sample(256, rng)
    learning.observe(conditions, np.full(256, 0.7), 0.9)
    assert learning.current.shares_of_rows() == pytest.approx(TABLE.shares_of_rows(), abs=1e-6)


def test_parts_that_are_not_asked_and_things_unheard_of_are_no_mistake():
    learning = PromptLearning(TABLE)
    some = [{}, {"space_group": 62}, {"n_atoms": 300}, {"element": "Cl-Na"}, {"element": "U", "n_atoms": 2}]
    learning.observe(some, np.arange(5) / 5, 0.9)
    assert np.isfinite(learning.values()).all() and learning.current.shares_of_rows().sum() == pytest.approx(1)


def test_it_goes_on_from_its_state_and_the_table_keeps_its_weights(tmp_path):
    learning, rng = PromptLearning(TABLE), np.random.default_rng(0)
    for _ in range(2):
        conditions = learning.current.sample(64, rng)
        learning.observe(conditions, earning(conditions), 0.8)
    other = PromptLearning(TABLE)
    other.load_state(learning.state())
    for one in (learning, other):
        one.observe(conditions, earning(conditions), 0.8)
    assert np.array_equal(learning.current.weights, other.current.weights)
    learning.current.save(tmp_path)
    loaded = PromptTable.load(tmp_path)
    assert np.array_equal(loaded.weights, learning.current.weights) and not loaded.properties
    drawn = [(c["space_group"] == 225) for c in loaded.sample(4000, np.random.default_rng(1))]
    expected = learning.current.shares_of_rows()[TABLE.space_group == 225].sum()
    assert np.mean(drawn) == pytest.approx(expected, abs=0.03)
    assert sum(v for (group, _), v in loaded.shares().items() if group == 225) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("settings", [["prompts.grid.space_group=[225,221]"], ["algorithm=trl"]])
def test_where_nothing_is_to_learn_it_is_told(settings):
    with pytest.raises(UserError, match=r"prompts\.diversity=0\.9"):
        Asking(TABLE, load("finetune", ["prompts.diversity=0.9", *settings]))
