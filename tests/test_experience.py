"""What is learnt from: prompts of the data's distribution, and shares of all samples."""

import numpy as np
import pytest

from policies.prompts import PromptTable


def test_prompts_follow_the_data():
    table = PromptTable.of([225, 1], [[11, 17], [8, 8, 22]])
    drawn = table.sample(200, np.random.default_rng(0))
    assert {(c["space_group"], c["n_atoms"]) for c in drawn} == {(225, 2), (1, 3)}
    assert {c["element"] for c in drawn if c["n_atoms"] == 2} == {"Na", "Cl"}


def test_a_crystal_answers_its_prompt():
    from rlgen.experience import _answers

    rock_salt, quartz = "AB_cF8_225_a_b:Cl-Na", "A2B_hP9_152_c_a:O-Si"
    assert _answers(rock_salt, {"space_group": 225}) and not _answers(rock_salt, {"space_group": 221})
    assert _answers(rock_salt, {}) and not _answers(None, {}) and not _answers("NaCl|unlabelled", {"space_group": 225})
    assert _answers(quartz, {"space_group": 154})  # its mirror image: labels name both by one group


def test_shares_are_of_all_samples():
    from rlgen.experience import _flags
    from rlgen.types import RewardBreakdown

    raw = np.array([[1, 0.05], [1, 0.05], [1, 0.3], [0, -0.1], [np.nan, np.nan]])
    status = np.array(["ok"] * 4 + ["invalid"])
    breakdown = RewardBreakdown(("novelty", "stability"), raw, raw, raw[:, 0], status, [""] * 5)
    # The second is the first again: it is novel and stable, but only one of the two is S.U.N.
    flags = _flags(breakdown, ["a", "a", "b", "c", None])
    assert {name: flag.mean() for name, flag in flags.items()} == {"novel": 0.6, "stable": 0.6, "sun": 0.2}


def test_spread_of_a_batch():
    from rlgen.experience import _spread

    spread = _spread(np.array([0.5, 0.5, 0.0, 1.0]), np.array([0, 0, 1, 1]))
    assert spread == {"reward/std": pytest.approx(0.125**0.5), "reward/equal_groups": 0.5}
