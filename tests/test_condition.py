"""The condition-match reward: hand-computed scores, real crystals that answer their own properties, and failures."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CRYSTALS
from pymatgen.core import Lattice, Structure
from toy_rewards import rocksalt, rocksalts

from rewards import make
from rewards.condition import ConditionMatch
from rlgen import tracking
from rlgen.conditions import CRYSTAL_SYSTEMS
from rlgen.properties import PROPERTIES, measure
from rlgen.reward_pool import RewardPool
from rlgen.types import UserError

SALT = CRYSTALS["rock salt"]


def score(structure: Structure, condition: dict, **settings) -> float:
    reward = ConditionMatch(**settings)
    return float(reward.transform(reward.measure([structure], [condition]))[0])


def length_of(structure: Structure) -> float:
    return structure.lattice.a


def parity_of(structure: Structure) -> float:
    return len(structure) % 2


def broken(structure: Structure) -> float:
    raise ZeroDivisionError("no such property")


def test_a_number_is_met_within_its_tolerance_and_halves_with_every_width():
    density = SALT.density
    for off, expected in ((0, 1), (0.2, 1), (2.2, 0.5), (4.2, 0.25), (20.2, 2.0**-10)):
        assert score(SALT, {"density": density + off}) == pytest.approx(expected, rel=1e-6)
        assert score(SALT, {"density": density - off}) == pytest.approx(expected, rel=1e-6)
    narrow = {"tolerance": {"density": 0.5}, "width": {"density": 0.5}}
    assert score(SALT, {"density": density + 1}, **narrow) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("condition", "met"),
    [
        ({"space_group": 225}, 1), ({"space_group": 221}, 0),
        ({"crystal_system": "cubic"}, 1), ({"crystal_system": "hexagonal"}, 0),
        ({"formula": "NaCl"}, 1), ({"formula": "Cl4Na4"}, 1), ({"formula": "NaCl2"}, 0), ({"formula": "KCl"}, 0),
        ({"element": "Cl"}, 1), ({"element": "K"}, 0), ({"element": "Cl-Na"}, 1), ({"element": "Cl-K"}, 0),
        ({"elements": "Na-Cl-K"}, 1), ({"elements": ["Na", "K"]}, 0), ({"elements": "Na"}, 0),
        ({"chemical_system": "Cl-Na"}, 1), ({"chemical_system": "Na-Cl-K"}, 0),
        ({"n_atoms": 2}, 1), ({"n_atoms": 4}, 0.5), ({"n_elements": 3}, 0.5),
        ({}, 1), ({"density": math.nan}, 1), ({"max_atoms": 2, "neutral": True}, 1), ({"space_group": None}, 1),
    ],
)  # fmt: skip
def test_rock_salt_meets_or_misses(condition, met):
    assert score(SALT, condition) == met
    assert score(SALT * (2, 1, 1), condition) == met  # whatever the cell


def test_a_mirror_image_is_as_asked():
    right = CRYSTALS["quartz"]
    left = Structure(-right.lattice.matrix, right.species, right.frac_coords)
    assert measure("space_group", right) == 152 and measure("space_group", left) == 154
    for crystal in (right, left):
        assert score(crystal, {"space_group": 152}) == score(crystal, {"space_group": 154}) == 1


def test_several_are_combined():
    asked = {"formula": "KCl", "crystal_system": "cubic", "density": SALT.density + 2.2}
    assert score(SALT, asked) == pytest.approx((0 + 1 + 0.5) / 3)
    assert score(SALT, asked, combine="geometric") == 0
    asked.pop("formula")
    assert score(SALT, asked, combine="geometric") == pytest.approx(0.5 ** (1 / 2))
    assert score(SALT, asked, properties=["density"]) == pytest.approx(0.5)
    # What prompts always tell counts where nothing else does, or where it is named.
    told = {"space_group": 225, "n_atoms": 4, "element": "K"}
    assert score(SALT, told) == pytest.approx((1 + 0.5 + 0) / 3)
    assert score(SALT, told | asked) == score(SALT, asked) == pytest.approx((1 + 0.5) / 2)
    named = ["space_group", "density", "element"]
    assert score(SALT, told | asked, properties=named) == pytest.approx((1 + 0.5 + 0) / 3)
    mixed = ConditionMatch().measure([SALT] * 3, [told | asked, told, {}])
    assert mixed == pytest.approx([0.75, 0.5, 1])
    assert score(SALT, {"space_group": 1}, properties=["density"]) == 1  # nothing that counts was asked


def test_every_real_crystal_meets_what_it_is(mp20, monkeypatch):
    conditions = []
    for structure in mp20:
        found = {name: measure(name, structure) for name, one in PROPERTIES.items() if one.measure}
        found["crystal_system"] = CRYSTAL_SYSTEMS[int(found["crystal_system"])]
        found |= {"formula": structure.formula, "elements": structure.chemical_system,
                  "chemical_system": structure.chemical_system, "element": structure.species[0].symbol}
        conditions.append({k: v for k, v in found.items() if isinstance(v, str) or not math.isnan(v)})
    assert np.mean(ConditionMatch().measure(mp20, conditions) == 1) > 0.97  # single layers with much vacuum are refused
    monkeypatch.setattr("rewards.condition.refuse", lambda *_: "")
    assert ConditionMatch().measure(mp20, conditions).tolist() == [1.0] * len(mp20)
    others = ConditionMatch().measure(mp20, conditions[1:] + conditions[:1])
    assert np.nanmax(others) <= 1 and np.nanmean(others) < 0.8  # NaN where a crystal has no HHI


def test_a_logarithmic_scale_counts_factors():
    scales = {"length": {"kind": "log", "low": 0.1, "high": 1000.0}}
    settings = {"functions": {"length": "test_condition:length_of"}, "scales": scales,
                "tolerance": {"length": 0.0}, "width": {"length": 1.41}}
    assert score(SALT, {"length": 5.64}, **settings) == 1
    # From 4.23 a width of 1.41 leads to 5.64, a factor of 4/3; as far down by the same factor.
    assert score(SALT, {"length": 4.23}, **settings) == pytest.approx(0.5)
    narrow = settings | {"width": {"length": 7.52 / 3}}
    assert score(SALT, {"length": 7.52}, **narrow) == pytest.approx(0.5)


def test_a_scale_gives_tolerance_and_width():
    scales = {"length": {"kind": "linear", "low": 0.0, "high": 10.0}}
    settings = {"functions": {"length": "test_condition:length_of"}, "scales": scales}
    assert score(SALT, {"length": 5.64 + 0.1}, **settings) == 1
    assert score(SALT, {"length": 5.64 + 1.1}, **settings) == pytest.approx(0.5)
    assert score(SALT, {"length": 5.64 - 2.1}, **settings) == pytest.approx(0.25)


def test_a_category_of_the_users_own():
    scales = {"parity": {"kind": "category", "names": ["even", "odd"]}}
    settings = {"functions": {"parity": "test_condition:parity_of"}, "scales": scales}
    assert [score(SALT, {"parity": asked}, **settings) for asked in ("even", "odd")] == [1, 0]


def test_what_cannot_be_had_has_failed_and_is_never_a_reward():
    xenon = Structure(Lattice.cubic(6.2), ["Xe"], [[0, 0, 0]])
    crystals, asked = [SALT, xenon, xenon], [{"hhi_reserve": 1100}, {"hhi_reserve": 1100}, {"density": xenon.density}]
    with RewardPool([make("condition")], "condition", workers=0) as pool:
        scored = pool.score(crystals, asked)
    assert scored.total.tolist() == [1, 0, 1]
    assert scored.status.tolist() == ["ok", "failed", "ok"]
    assert scored.reason == ["", "condition: hhi_reserve: it has none", ""]
    assert np.isnan(scored.raw[1, 0]) and np.isnan(scored.score[1, 0])


def test_a_density_that_is_feigned_is_not_paid_for():
    squeezed = rocksalt(a=3.1)  # 13 g/cm³, and valid
    apart = Structure(Lattice.cubic(9), ["Na", "Cl"], [[0, 0, 0], [0.28, 0, 0]])
    asked = [{"density": s.density} for s in (squeezed, apart)]
    with RewardPool([make("condition")], "condition", workers=0) as pool:
        scored = pool.score([squeezed, apart, squeezed], [*asked, {"space_group": 225}])
    assert scored.status.tolist() == ["failed", "failed", "ok"] and scored.total.tolist() == [0, 0, 1]
    assert [reason.split(": ")[2] for reason in scored.reason[:2]] == ["close", "fragments"]


def test_measured_values_and_matches_are_kept_beside_the_score():
    crystals = rocksalts(5)
    asked = [{"density": 3.0}, {"density": 3.0, "space_group": 225}, {}, {"space_group": 1}, {"element": "Na"}]
    with RewardPool([make("condition"), make("validity")], "condition*validity", workers=0) as pool:
        scored = pool.score(crystals, asked)
    scored.extra["condition"] = np.array(asked, dtype=object)
    columns = tracking.breakdown_columns(scored)
    assert columns["condition"].tolist() == asked
    assert columns["measured_density"][:2].tolist() == [c.density for c in crystals[:2]]
    assert np.isnan(columns["measured_density"][2:]).all()
    assert columns["measured_space_group"][[1, 3]].tolist() == [225, 225]
    assert columns["match_space_group"][[1, 3]].tolist() == [1, 0] and columns["match_element"][4] == 1
    expected = [columns["match_density"][0], columns["match_density"][1], 1, 0, 1]
    assert columns["condition_score"].tolist() == expected
    scalars = tracking.breakdown_scalars(scored)
    assert scalars["condition/density_error"] == pytest.approx(np.abs(columns["measured_density"][:2] - 3).mean())
    assert scalars["condition/space_group"] == 0.5 and "condition/space_group_error" not in scalars


def test_chunks_of_a_batch_keep_their_columns():
    """Each crystal alone, as after a worker was lost, and all at once."""
    crystals, asked = rocksalts(7), [{"density": 2.0 + 0.1 * i} if i % 2 else {"n_atoms": 2} for i in range(7)]
    reward = ConditionMatch()
    raw, _, columns = reward.measure_with_columns(crystals, asked)
    for i in range(7):
        alone, _, column = reward.measure_with_columns([crystals[i]], [asked[i]])
        assert alone[0] == raw[i]
        assert all(column[name][0] == columns[name][i] for name in column)


def test_a_function_of_the_users_own():
    asked = [{"length": 5.6}, {"length": 6.6}]
    reward = make("condition", functions={"length": "test_condition:length_of"}, width={"length": 1.0})
    assert reward.measure([rocksalt(a=5.6)] * 2, asked) == pytest.approx([1, 0.5])
    with RewardPool([make("condition", functions={"x": "test_condition:broken"}, width={"x": 1.0})], "condition",
                    workers=0) as pool, pytest.raises(UserError, match="failed on all 2 crystals: ZeroDivisionError"):
        pool.score(rocksalts(2), [{"x": 1.0}] * 2)


@pytest.mark.parametrize(
    ("settings", "condition", "message"),
    [
        ({}, {"hardness": 9}, r"nothing here gives.*'hardness'.*reward.condition.functions.hardness="),
        ({"functions": {"x": "no.such:f"}}, {"x": 1}, r"no.such:f' cannot be imported"),
        ({"functions": {"x": "test_condition:length_of"}}, {"x": 1}, r"reward.condition.width.x="),
        ({}, {"crystal_system": "cube"}, "'cube' is not one of triclinic"),
        ({"combine": "max"}, {}, "known are mean, geometric"),
        ({"width": {"density": 0}}, {}, "width.density=0: must be above 0"),
        ({"tolerance": {"density": -1}}, {}, "tolerance.density=-1: must be at least 0"),
        ({"scales": {"x": {"kind": "log", "low": 0, "high": 1}}}, {}, "logarithmic scale begins above 0"),
    ],
)
def test_mistakes_are_told(settings, condition, message):
    with pytest.raises(UserError, match=message):
        score(SALT, condition, **settings)


def test_an_unknown_potential_is_told_before_anything_is_measured():
    with pytest.raises(UserError, match=r"energy=m4gnet: unknown potential; known are auto, "):
        ConditionMatch(energy="m4gnet")


def test_it_is_cheap_to_send_to_a_worker():
    reward = ConditionMatch(width={"density": 1.0})
    assert pickle.loads(pickle.dumps(reward)) == reward and len(pickle.dumps(reward)) < 1000


def test_the_settings_of_a_run_reach_it():
    from rlgen.config import load
    from rlgen.experience import make_rewards

    config = load("finetune", ["reward=condition+novelty", "energy=chgnet", "reward.condition.width.density=0.5",
                               "reward.condition.properties=[density]", "reward.condition.functions.x=my.module:f"])
    reward = make_rewards(config)[0][0]
    expected = {"width": {"density": 0.5}, "functions": {"x": "my.module:f"}, "energy": "chgnet"}
    assert reward == ConditionMatch(["density"], **expected)


def test_distances_are_on_the_scales_that_the_policy_is_told():
    from types import SimpleNamespace

    from policies.representations import make as make_representation
    from rlgen.config import load
    from rlgen.experience import make_rewards, tell_scales

    scale = {"kind": "log", "low": 0.1, "high": 100.0, "bins": 8}
    policy: Any = SimpleNamespace(representation=make_representation("atoms", conditions={"x": scale, "y": scale}))
    config = load("finetune", ["reward=condition", "energy=chgnet"])
    config.reward.condition = {"scales": {"y": scale | {"high": 5.0}}}
    tell_scales(config, policy)
    reward = make_rewards(config)[0][0]
    assert reward.scales == {"x": scale, "y": scale | {"high": 5.0}}
    assert reward.match("x", 1.0, 1.0) == 1 and reward.match("x", 10.0, 1.0) < 0.2


def test_energy_above_hull_is_that_of_the_potential():
    from rlgen.energies import load_potential
    from rlgen.hull import Hull

    potential = load_potential("chgnet")
    above = Hull.load(potential.scale).e_above_hull(
        SALT.composition, potential.evaluate([SALT], forces=False)[0].energy, scale=potential.scale
    )
    reward = ConditionMatch(energy="chgnet")
    _, _, columns = reward.measure_with_columns([SALT], [{"e_above_hull": above}])
    assert columns["measured_e_above_hull"][0] == pytest.approx(above, abs=1e-5)
    assert columns["match_e_above_hull"][0] == 1
    scales = {"stability": {"kind": "category", "names": ["high", "low"], "threshold": above + 0.01}}
    for reward, high in ((ConditionMatch(energy="chgnet", scales=scales), True),
                         (ConditionMatch(energy="chgnet"), above < 0.1)):
        asked: list[dict] = [{"stability": "high"}, {"stability": "low"}]
        raw, _, columns = reward.measure_with_columns([SALT] * 2, asked)
        assert columns["measured_stability"] == pytest.approx([above] * 2, abs=1e-5)
        assert raw.tolist() == columns["match_stability"].tolist() == [high, not high]


def test_a_rare_target_is_hit_more_often_after_learning(monkeypatch):
    """Cells of a random policy are up to 126 Å long; one in twenty-five has its first edge within 2.5 Å of 20."""
    from accelerate import Accelerator
    from toy_learning import settings, tiny

    from policies.sampler import decode, sample
    from rlgen import algorithms

    monkeypatch.setattr("rewards.condition.refuse", lambda *_: "")  # no random cell would pass
    policy, reward = tiny(), ConditionMatch(functions={"length": "test_condition:length_of"},
                                            tolerance={"length": 1.0}, width={"length": 8.0})
    learner = algorithms.make(settings(learning_rate=2e-2), policy, Accelerator(cpu=True))

    def draw(step: int) -> tuple[Any, np.ndarray, float]:
        rollout = sample(policy, [{"n_atoms": 1}] * 64, torch.Generator().manual_seed(step),
                         group=[i // 8 for i in range(64)])
        crystals = decode(policy, rollout)
        earned = np.zeros(64)
        fine = [i for i, crystal in enumerate(crystals) if isinstance(crystal, Structure)]
        earned[fine] = reward.measure([crystals[i] for i in fine], [{"length": 20.0}] * len(fine))
        return rollout, earned, np.mean([abs(length_of(crystals[i]) - 20) < 2.5 for i in fine])

    hits = []
    for step in range(30):
        rollout, earned, share = draw(step)
        learner.update(rollout, earned, np.random.default_rng(step))
        hits.append(share)
    assert np.mean(hits[:5]) < 0.1 and np.mean(hits[-5:]) > 0.5
