"""The guard falls in where a policy narrows, drifts or forgets, and not where a healthy run is noisy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from policies.model import SHIPPED, CrystalPolicy
from policies.prompts import PromptTable
from policies.representations import make
from rlgen import finetune
from rlgen.collapse import Guard
from rlgen.config import load
from rlgen.metrics import exp_entropy
from rlgen.types import UserError


def guard(**settings):
    base = {"action": "rollback", "window": 4, "fall": {}, "rise": {}, "above": {}}
    return Guard(OmegaConf.create(base | settings))


def alarms(watch, name, values, first=1):
    """The steps at which a series of values gives an alarm."""
    return [step for step, value in enumerate(values, first) if watch.observe(step, {name: value})]


def test_a_fall_is_of_medians_and_from_the_highest():
    # From step 9 on the medians of four are 10, (10 + 2) / 2 = 6, then 2, which is below half of 10.
    assert alarms(guard(fall={"x": 0.5}), "x", [10] * 8 + [2] * 3) == [11]
    assert alarms(guard(fall={"x": 0.5}), "x", [10] * 8 + [2, 10] * 10) == []
    assert alarms(guard(fall={"x": 0.5}), "x", [8, 12, 9, 11] + [5.1] * 20) == []
    assert alarms(guard(fall={"x": 0.5}), "x", [2] * 4 + [10] * 4 + [4] * 4) == [11]  # it began low
    assert alarms(guard(fall={"x": None}), "x", [10] * 8 + [0] * 9) == []


def test_a_rise_and_a_limit_and_no_number():
    assert alarms(guard(above={"kl": 0.3}), "kl", [0] * 8 + [0.5] * 3) == [11]  # 0.25 the step before
    assert alarms(guard(above={"kl": 0.3}), "kl", [0.1] * 8 + [8512.0] + [0.1] * 8) == []  # one token's doing
    assert alarms(guard(rise={"nll": 1.2}), "nll", [50] * 8 + [59] * 9) == []
    assert alarms(guard(rise={"nll": 1.2}), "nll", [50] * 8 + [61] * 4) == [11]
    assert alarms(guard(rise={"nll": 1.2}), "nll", [50] * 8 + [math.nan]) == [9]


def test_what_is_measured_now_and_then_is_compared_when_it_is():
    watch, found = guard(rise={"nll": 1.2}), []
    for step in range(1, 31):
        scalars = {"nll": 50.0 if step < 20 else 70.0} if step % 10 == 1 else {}
        if watch.observe(step, scalars):
            found.append(step)
    assert found == [21]


def test_an_alarm_is_not_repeated_before_its_window_has_passed():
    assert alarms(guard(above={"kl": 0.3}), "kl", [1.0] * 20) == [4, 8, 12, 16, 20]


def test_after_a_change_diversity_has_a_new_baseline_and_forgetting_has_not():
    watch = guard(fall={"x": 0.5}, rise={"nll": 1.2})
    assert not alarms(watch, "x", [10] * 8) and not alarms(watch, "nll", [50] * 8)
    watch.expect_change(8)
    assert alarms(watch, "x", [3] * 12, first=9) == []
    assert alarms(watch, "x", [1] * 4, first=21) == [23]  # the step before the median is 2
    assert alarms(watch, "nll", [70] * 4, first=25) == [27]


def test_a_guard_goes_on_from_its_state():
    whole, values = guard(fall={"x": 0.5}), [10, 9, 11, 10, 10, 8, 9, 10, 6, 3, 2, 2, 2]
    expected = alarms(whole, "x", values)
    for cut in range(len(values)):
        first, second = guard(fall={"x": 0.5}), guard(fall={"x": 0.5})
        before = alarms(first, "x", values[:cut])
        second.load_state(json.loads(json.dumps(first.state())))
        assert before + alarms(second, "x", values[cut:], first=cut + 1) == expected and expected


def test_settings_and_unmeasured_scalars():
    with pytest.raises(UserError, match=r"collapse.action=resist; known: rollback, stop, ignore"):
        guard(action="resist")
    watch = guard(fall={"x": 0.5, "y": 0.5})
    watch.observe(1, {"x": 1.0})
    assert watch.unmeasured() == ["y"]


def test_the_defaults_do_not_fall_in_by_chance():
    """Batches as a healthy policy writes them: 16 groups of 8, each in the group and with the atoms of its prompt."""
    prompts, config = PromptTable.load(SHIPPED), load("finetune", [])
    for seed in range(5):
        watch, rng = Guard(config.collapse), np.random.default_rng(seed)
        for step in range(1, 101):
            asked = prompts.sample(16, rng)
            written = [(c["space_group"], c["n_atoms"], c["element"]) for c in asked for _ in range(8)]
            valid = rng.random(len(written)) < 0.75
            crystals = [w for w, ok in zip(written, valid, strict=True) if ok]
            scalars = {"diversity/space_groups": exp_entropy(c[0] for c in crystals),
                       "diversity/prototypes": exp_entropy(c[:2] for c in crystals),
                       "diversity/elements": exp_entropy(c[2] for c in crystals),
                       "diversity/n_atoms": float(np.mean([c[1] for c in crystals])),
                       "sample/unique": float(valid.mean()), "policy/kl": 0.03 * step / 100,
                       "policy/entropy": 2 - step / 100, "policy/nll_real": 55 + step / 20}
            assert not watch.observe(step, scalars), (seed, step)


def test_the_defaults_see_the_collapse_of_the_first_attempt():
    """Exp-entropy of space groups 29 to 1.1 within 85 steps: an alarm long before the end."""
    watch = Guard(load("finetune", []).collapse)
    found = alarms(watch, "diversity/space_groups", np.geomspace(29, 1.1, 85))
    assert 8 < found[0] < 40


def paid_for_one_group(tmp_path, *more):
    """A run that pays for nothing but nearness to space group 225; returns its metrics, its notes and its policy."""
    torch.manual_seed(0)
    policy = CrystalPolicy.create(make("orbits", max_atoms=4), hidden_size=32, layers=1, heads=2, intermediate_size=64)
    policy.save_pretrained(tmp_path / "start")
    PromptTable.of([225, 221, 139, 62, 194, 166, 227, 186],
                   [[11, 17], [55, 17], [29], [26] * 4, [12, 12], [33, 33], [14, 14], [30, 30, 8, 8]]
                   ).save(tmp_path / "start")
    finetune.run(load("finetune", [
        "reward=validity+3*toy_rewards:NearGroup", f"policy={tmp_path / 'start'}", f"output={tmp_path / 'run'}",
        "workers=0", "device=cpu", "energy=chgnet", "batch=24", "algorithm.group_size=8",
        "algorithm.learning_rate=2e-2", "evaluate=0", "real_every=0", "checkpoint_every=5", "collapse.window=4",
        "collapse.above.policy/kl=null",
        "reward.validity.volume_per_atom=[0,1e9]", "reward.validity.density=[0,1e9]", "reward.validity.max_length=1e9",
        "memory.crystal.shape=none", "collapse.action=stop", *more]))
    lines, notes = (path.read_text().splitlines() if path.exists() else []
                    for path in (tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "notes.jsonl"))
    return list(map(json.loads, lines)), [json.loads(line)["note"] for line in notes]


def test_a_policy_that_is_paid_for_one_group_is_stopped(tmp_path):
    lines, notes = paid_for_one_group(tmp_path, "steps=40", "prompts.space_group=0", "prompts.n_atoms=0",
                                      "prompts.element=0", "off_prompt=1")
    assert len(lines) < 40 and lines[-1]["collapse/alarms"] == 1
    assert "collapse: diversity/space_groups fell" in notes[-1] and notes[-1].endswith("the run stops (rollbacks: 0)")


def test_the_same_reward_with_prompts_and_a_lower_rate_gives_no_alarm(tmp_path):
    lines, notes = paid_for_one_group(tmp_path, "steps=14", "algorithm.group_size=2", "algorithm.learning_rate=1e-3")
    assert len(lines) == 14 and lines[-1]["collapse/alarms"] == 0
    assert not any("fell" in note for note in notes)
