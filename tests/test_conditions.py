"""Properties that are asked for: their scales, their tokens in prompts, and what a policy makes of them."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CRYSTALS
from pymatgen.core import Lattice

from policies.model import CrystalPolicy, smoothing
from policies.prompts import PromptTable
from policies.representations import REPRESENTATIONS, make
from policies.sampler import decode, sample
from rlgen import samples
from rlgen.asking import Asking, combinations
from rlgen.conditions import (
    CATEGORIES,
    CRYSTAL_SYSTEMS,
    SYSTEM,
    Category,
    Transform,
    crystal_system,
    groups_of,
    read,
)
from rlgen.config import load
from rlgen.data import Record
from rlgen.drawing import GUIDANCE, guidance
from rlgen.encoded import encode
from rlgen.labels import label, labels, scales
from rlgen.pretrain import run as pretrain
from rlgen.sample import run as run_sample
from rlgen.spacegroup import from_spacegroup
from rlgen.types import CrystalError, UserError

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
    ({"kind": "category", "names": ["a", "a"]}, "two names"), (7, "must have kind"),
    ({"kind": "category", "names": ["a", "b"], "threshold": "high"}, "threshold=high must be a number")])
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
        SYSTEM.index("square")
    assert SYSTEM.index("cubic") == 6 and Category(CRYSTAL_SYSTEMS) == SYSTEM


# Prompts

SCALES = {"density": Transform("linear", 0.0, 8.0, 4), "gap": Transform("log", 0.1, 10.0, 5), "crystal_system": SYSTEM}


def made(name="orbits", **parameters):
    return make(name, **{"max_atoms": 12, "conditions": {k: v.to_dict() for k, v in SCALES.items()}} | parameters)


def policy_of(representation, seed=0, sharpness=20.0):
    torch.manual_seed(seed)
    policy = CrystalPolicy.create(representation, hidden_size=32, layers=2, heads=2, intermediate_size=64)
    with torch.no_grad():
        policy.embed.weight.mul_(sharpness)  # so that it prefers some tokens
        if policy.told is not None:
            policy.told.out.weight.normal_(std=0.1)  # as if it had learnt
    return policy.eval()


BINNED = [name for name in REPRESENTATIONS if name != "text"]


@pytest.mark.parametrize("name", BINNED)
def test_properties_are_told_after_the_rest(name):
    rep, bare = made(name), make(name, max_atoms=12)

    def told(condition):
        ids = rep.prompt(condition)
        assert len(ids) == rep.prompt_length == bare.prompt_length + 3
        return [rep.vocabulary[i] for i in ids[bare.prompt_length :]]

    assert told({}) == told({"density": None, "gap": math.nan}) == ["crystal_system?", "density?", "gap?"]
    assert told({"density": 3, "crystal_system": "cubic"}) == ["cubic", "density[1]", "gap?"]
    assert told({"density": 0.0, "gap": 1e9}) == ["crystal_system?", "density[0]", "gap[4]"]  # 0 is a value
    assert told({"density": -7, "gap": -7}) == ["crystal_system?", "density[0]", "gap[0]"]
    condition = {"space_group": 225, "n_atoms": 2, "element": "Na"}
    assert rep.prompt(condition | {"density": 3})[: bare.prompt_length] == bare.prompt(condition)
    # The tokens of a crystal do not depend on what can be asked.
    assert rep.vocabulary[: len(bare.vocabulary)] == bare.vocabulary
    assert rep.encode(CRYSTALS["rutile"]) == bare.encode(CRYSTALS["rutile"])


def test_properties_are_sentences_in_text():
    rep = made("text", conditions={"density": {"kind": "linear", "low": 0, "high": 20},
                                   "formation_energy": {"kind": "linear", "low": -4.5, "high": 0.5, "bins": 50},
                                   "hhi": {"kind": "log", "low": 0.012, "high": 9000.0}} | {"crystal_system": SYSTEM})

    def told(condition):
        ids = rep.prompt(condition)
        assert len(ids) == rep.prompt_length and len(ids) - ids.count(rep.pad) <= rep.prompt_length
        return "".join(rep.vocabulary[i] for i in ids if i > rep.eos)

    assert told({}) == told({"density": None, "hhi": math.nan}) == ""
    assert told({"density": 5.318, "n_atoms": 4}) == " density: 5.32. 4 atoms."
    assert told({"density": 0}) == " density: 0.00." and told({"density": 99.0}) == " density: 20.00."
    assert told({"formation_energy": -1.234}) == " formation energy: -1.23."
    assert told({"hhi": 0.0123456}) == " hhi: 0.0123." and told({"hhi": 1234.5}) == " hhi: 1230."
    assert told({"crystal_system": "cubic", "hhi": 1}) == " crystal system: cubic. hhi: 1."
    everything = {"space_group": 225, "density": 12.34, "n_atoms": 12, "hhi": 0.0199, "formation_energy": -4.4,
                  "element": "Na", "crystal_system": "cubic"}
    group, n, z = rep.read_prompts(torch.tensor([rep.prompt(everything)]))
    assert (int(group), int(n), int(z)) == (225, 12, 11)
    bare = {k: everything[k] for k in ("space_group", "n_atoms", "element")}
    answer = torch.tensor(rep.encode(CRYSTALS["rutile"]))
    both = torch.stack([torch.cat([torch.tensor(rep.prompt(c)), answer]) for c in (everything, bare)])
    assert torch.equal(rep.unasked(both), both[1].expand(2, -1))


@pytest.mark.parametrize("name", BINNED)
def test_unasked_prompts_keep_the_rest(name):
    rep, rest = made(name), {"space_group": 225, "n_atoms": 2, "element": "Na"}
    answer = rep.encode(CRYSTALS["rock salt"])
    ids = torch.tensor([rep.prompt(rest | {"density": 3, "gap": 1, "crystal_system": "cubic"}) + answer])
    assert rep.unasked(ids).tolist() == [rep.prompt(rest) + answer]


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_scales_are_part_of_the_version(name):
    rep, bare = made(name), make(name, max_atoms=12)
    assert make(name, **rep.parameters).version == rep.version != bare.version
    assert make(name, max_atoms=12, conditions={}).version == bare.version and "conditions" not in bare.parameters
    other = SCALES | {"density": Transform("linear", 0.0, 8.1, 4)}
    assert made(name, conditions={k: v.to_dict() for k, v in other.items()}).version != rep.version


@pytest.mark.parametrize(("name", "condition", "message"), [
    ("orbits", {"hardness": 3}, "cannot ask for hardness; known: space_group, n_atoms, element, crystal_system, "
                                "density, gap"),
    ("orbits", {"hardness": 3}, "rlgen.pretrain conditions=hardness"),
    ("orbits", {"density": "high"}, "density=high: 'high' is no number"),
    ("orbits", {"crystal_system": "square"}, "crystal_system=square: .* not one of triclinic"),
    ("orbits", {"crystal_system": "cubic", "space_group": 166}, "space_group=166 is trigonal, not cubic"),
    ("text", {"density": "high"}, "no number"), ("text", {"hardness": 3}, "cannot ask for hardness")])
def test_what_cannot_be_asked_for_says_so(name, condition, message):
    with pytest.raises(UserError, match=message):
        made(name).prompt(condition)


def test_the_crystal_system_needs_training_where_the_grammar_has_no_groups():
    with pytest.raises(UserError, match="cannot ask for crystal_system"):
        make("atoms", max_atoms=12).prompt({"crystal_system": "cubic"})
    assert make("orbits", max_atoms=12).prompt({"crystal_system": "cubic"}) == make("orbits", max_atoms=12).prompt({})


@pytest.mark.parametrize("names", ["element", "formula", "a.b", "2d"])
def test_names_that_no_property_can_have(names):
    with pytest.raises(UserError, match=r"conditions: .*(every policy|no name)"):
        made(conditions={names: {"kind": "linear", "low": 0, "high": 1}})


# The grammar


@pytest.mark.parametrize("conditions", [{}, {"crystal_system": SYSTEM}])
@pytest.mark.parametrize("order", ["interleaved", "published"])
def test_a_crystal_system_is_kept_by_the_grammar(order, conditions):
    policy = policy_of(make("orbits", max_atoms=8, order=order, conditions=conditions))
    asked = [{"crystal_system": name} | extra for name in CRYSTAL_SYSTEMS for extra in ({}, {"n_atoms": 4})]
    rollout = sample(policy, asked, torch.Generator().manual_seed(0))
    first = policy.representation.first["space_group"]
    for row, condition in zip(rollout.ids[:, policy.representation.prompt_length].tolist(), asked, strict=True):
        assert row - first in groups_of(condition["crystal_system"])
    assert not [c for c in decode(policy, rollout) if isinstance(c, CrystalError) and c.kind == "parse"]
    again, _ = policy.token_logprobs(rollout.ids, conditions=asked if not conditions else None)
    assert (again - rollout.logprobs).abs()[rollout.mask].max() < 1e-4


@pytest.mark.parametrize(("numbers", "conditions"), [("bins", {}), ("digits", {"crystal_system": SYSTEM})])
def test_a_crystal_system_is_kept_by_the_grammar_of_invariant(numbers, conditions):
    policy = policy_of(make("invariant", max_atoms=8, numbers=numbers, conditions=conditions))
    asked = [{"crystal_system": name} | extra for name in CRYSTAL_SYSTEMS for extra in ({"formula": "LiFeO2"}, {})]
    rollout = sample(policy, asked, torch.Generator().manual_seed(0))
    rep, p = policy.representation, policy.representation.prompt_length
    for row, condition in zip(rollout.ids[:, p:].tolist(), asked, strict=True):
        assert rep.written_group(row) in groups_of(condition["crystal_system"])
    again, _ = policy.token_logprobs(rollout.ids, conditions=asked)
    assert (again - rollout.logprobs).abs()[rollout.mask].max() < 1e-4


@pytest.mark.parametrize("name", ["orbits", "invariant"])
def test_a_crystal_system_that_has_no_such_crystal_is_refused(name):
    rep = make(name, max_atoms=12)
    with pytest.raises(UserError, match="no cubic space group"):
        rep.start(torch.tensor([rep.prompt({"n_atoms": 5, "crystal_system": "cubic"})]),
                  [{"n_atoms": 5, "crystal_system": "cubic", "formula": "LiFeCoNiMn"}])


# The policy


def test_embeddings_are_smooth_in_the_bins_by_hand():
    rep = make("atoms", max_atoms=4, conditions={"x": {"kind": "linear", "low": 0, "high": 3, "bins": 3},
                                                 "crystal_system": SYSTEM})
    weights = smoothing(rep)
    e, e4 = math.exp(-0.5), math.exp(-2.0)  # of neighbours, and of bins two apart
    assert torch.equal(weights[:9], torch.eye(12)[:9])  # unknown and seven systems, unknown
    expected = torch.tensor([[1, e, e4], [e, 1, e], [e4, e, 1]])
    assert torch.allclose(weights[9:, 9:], expected / expected.sum(1, keepdim=True)) and not weights[9:, :9].any()
    policy = policy_of(rep)
    ids = torch.tensor([[*rep.prompt({"x": 1.5, "crystal_system": "cubic", "n_atoms": 2}), 20, 30]])
    embedded, told = policy.embedded(ids)
    x, table = embedded[0], policy.embed.weight
    first = rep.first["asked:x"]
    smooth = (e * table[first + 1] + table[first + 2] + e * table[first + 3]) / (1 + 2 * e)
    assert torch.allclose(x[5], smooth, atol=1e-6)
    for at in (0, 1, 2, 3, 4, 6, 7):  # all others are the table's own
        assert torch.equal(x[at], table[ids[0, at]])
    both = x[4] + x[5]  # of the two properties
    inner = policy.told.into.weight @ (both / (both.square().mean() + 1e-6).sqrt() * policy.told.norm.weight)
    by_hand = policy.told.out.weight @ (inner * inner.sigmoid())
    assert told.shape == (1, 5, 1, 32) and torch.allclose(told.flatten(), by_hand, atol=1e-5)


@torch.no_grad()
def test_what_is_told_reaches_every_token_and_nothing_before_it_is_learnt():
    rep = made("atoms", max_atoms=6)
    one = {"density": 7.0, "n_atoms": 3}
    for std, reaches in ((0.0, False), (0.1, True)):
        policy = policy_of(rep)
        policy.told.out.weight.normal_(std=std) if std else policy.told.out.weight.zero_()
        for block in policy.blocks:  # nothing gets there through attention
            block.out.weight.zero_()
        answer = sample(policy, [one], torch.Generator().manual_seed(0)).ids[:, rep.prompt_length :]
        found = [policy.hidden(torch.cat([torch.tensor([rep.prompt(c)]), answer], 1))[0, rep.prompt_length :]
                 for c in (one, one | {"density": 2.0})]
        apart = (found[0] - found[1]).abs().amax(-1)
        assert (apart > 1e-3).all() if reaches else not apart.any()


def rows(rep, n=12, seed=0):
    """Conditions of which each is asked for by half of the rows."""
    rng = np.random.default_rng(seed)
    full = [{"n_atoms": int(rng.integers(1, 9)), "element": "Na", "density": float(rng.uniform(0, 9)),
             "gap": float(rng.uniform(0, 12))} for _ in range(n)]
    return [{k: v for k, v in row.items() if rng.random() < 0.6} for row in full]


@pytest.mark.parametrize("name", REPRESENTATIONS)
@pytest.mark.parametrize(("weight", "temperature"), [(2.5, 0.7), (0.0, 1.0)])
def test_sampled_and_recomputed_logprobs_agree_under_guidance(name, weight, temperature):
    policy = policy_of(made(name, max_atoms=6))
    policy.guide(weight)
    rollout = sample(policy, [c | {"n_atoms": min(c.get("n_atoms", 3), 6)} for c in rows(policy.representation)],
                     torch.Generator().manual_seed(0), temperature=temperature, batch=5)
    again, _ = policy.token_logprobs(rollout.ids, temperature)
    assert (again - rollout.logprobs).abs()[rollout.mask].max() < 1e-4
    p = policy.representation.prompt_length
    whole = policy(rollout.ids, temperature=temperature).logits[:, p - 1 : -1].log_softmax(-1)
    found = whole.gather(2, rollout.ids[:, p:, None])[..., 0]
    assert (found - rollout.logprobs).abs()[rollout.mask].max() < 1e-4


def test_guidance_by_hand():
    rep = made("atoms", max_atoms=6)
    policy = policy_of(rep)
    asked, rest = {"density": 7.0, "gap": 0.2, "n_atoms": 3}, {"n_atoms": 3}
    answer = sample(policy, [asked], torch.Generator().manual_seed(0)).ids[:, rep.prompt_length :]
    with_, without = (torch.cat([torch.tensor([rep.prompt(c)]), answer], 1) for c in (asked, rest))
    c, u = (policy(ids).logits for ids in (with_, without))
    plain, _ = policy.token_logprobs(with_)
    policy.guide(1.0)
    assert torch.equal(policy(with_).logits, c)  # none at all
    policy.guide(3.0)
    guided = policy(with_).logits[:, rep.prompt_length - 1 :]
    c, u = c[:, rep.prompt_length - 1 :], u[:, rep.prompt_length - 1 :]
    legal = c.isfinite()
    assert torch.equal(legal, guided.isfinite())
    assert torch.allclose(guided[legal], (u + 3 * (c - u))[legal], atol=1e-4)
    policy.guide(0.0)
    free, _ = policy.token_logprobs(with_)
    policy.guide(1.0)
    assert torch.allclose(free, policy.token_logprobs(without)[0], atol=1e-5)
    assert not torch.allclose(free, plain, atol=1e-2)


def test_guidance_needs_a_policy_that_was_trained_on_properties():
    with pytest.raises(UserError, match="pretrain conditions="):
        policy_of(make("atoms", max_atoms=4)).guide(2.0)


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_checkpoints_keep_scales_and_properties(name, tmp_path):
    policy = policy_of(made(name, max_atoms=6))
    table = PromptTable.of([225, 221], [[11, 17], [38, 22, 8, 8, 8]], {"density": [2.0, math.nan], "gap": [5.0, 0.0]})
    policy.save_pretrained(tmp_path)
    table.save(tmp_path)
    again, prompts = CrystalPolicy.load(str(tmp_path))
    asked = rows(policy.representation)
    assert again.representation.conditions == SCALES
    drawn = [sample(p, [c | {"n_atoms": 2} for c in asked], torch.Generator().manual_seed(0)) for p in (policy, again)]
    assert torch.equal(drawn[0].ids, drawn[1].ids) and torch.equal(drawn[0].logprobs, drawn[1].logprobs)
    rng = np.random.default_rng(0)
    assert prompts.row(0, rng) | {"element": ""} == {"space_group": 225, "n_atoms": 2, "element": "", "density": 2.0,
                                                     "gap": 5.0}
    assert "density" not in prompts.row(1, rng) and prompts.row(1, rng)["gap"] == 0.0


# Prompts of the data

RNG = np.random.default_rng(0)
DENSITIES = np.arange(200) / 10
TABLE = PromptTable.of([225, 221] * 100, [[11, 17], [38, 22, 8, 8, 8]] * 100,
                       {"density": np.where(np.arange(200) % 4 == 3, np.nan, DENSITIES), "gap": np.ones(200)})
OF_TABLE = {"density": Transform("linear", 0.0, 20.0), "gap": Transform("log", 0.1, 10.0)}


def test_prompts_of_the_data_tell_what_is_known():
    conditions = TABLE.sample(2000, np.random.default_rng(0), keep={"density": 1, "gap": 1})
    assert np.mean(["density" in c for c in conditions]) == pytest.approx(0.75, abs=0.03)
    assert all(c["gap"] == 1 and c.get("density", 1) >= 0 for c in conditions)
    assert all({"space_group", "n_atoms", "element"} < set(c) for c in conditions)
    kept = TABLE.sample(2000, np.random.default_rng(0), keep={"gap": 0.3})
    assert np.mean(["gap" in c for c in kept]) == pytest.approx(0.3, abs=0.03)
    assert not any("density" in c for c in kept)


STABILITY = Category(("high", "low"), 0.05)


def test_stability_is_high_below_a_threshold():
    assert CATEGORIES["stability"] == Category(("high", "low"), 0.1) and read({"stability": STABILITY.to_dict()}) == {
        "stability": STABILITY}
    assert STABILITY.places([-0.2, 0.0, 0.0499, 0.05, 3.0]).tolist() == [0, 0, 0, 1, 1]
    assert np.isnan(STABILITY.places(math.nan)) and SYSTEM.places([6, 0]).tolist() == [6, 0]
    with pytest.raises(UserError, match=r"conditions\.stability: must be the category of high, low"):
        read({"stability": {"kind": "linear", "low": 0, "high": 1}})
    some = [*records(), *records()]
    for i, record in enumerate(some):
        record.properties["e_above_hull"] = i / 100
    del some[3].properties["e_above_hull"]
    known = labels(some, ["stability"])
    assert known["stability"][:5].tolist() == pytest.approx([0, 0.01, 0.02, math.nan, 0.04], nan_ok=True)
    told = scales(["stability"], {"stability": {"threshold": 0.05}}, known)
    assert told == {"stability": STABILITY.to_dict()}
    with pytest.raises(UserError, match=r"conditions\.stability: all that is known is high with threshold=2\.0"):
        scales(["stability"], {"stability": {"threshold": 2.0}}, known)
    with pytest.raises(UserError, match=r"conditions\.stability: .*bins"):
        scales(["stability"], {"stability": {"bins": 3}}, known)
    with pytest.raises(UserError, match=r"no column e_above_hull.*annotate"):
        labels(records(), ["stability"])
    split = encode(some, make("orbits", max_atoms=20, conditions=told), known)
    found = [split.prompts.row(i, RNG).get("stability") for i in range(len(split))]
    assert found == ["high"] * 3 + [None, "high"] + ["low"] * (len(some) - 5)
    rows = split.prompts._fitting({"stability": "low", "crystal_system": "cubic"}, read(told))
    assert len(rows) and all(found[i] == "low" and split.prompts.space_group[i] >= 195 for i in rows)


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_stability_is_asked_for_by_its_name(name):
    rep = make(name, max_atoms=12, conditions={"stability": STABILITY.to_dict()})
    high, low, unknown = (rep.prompt({"stability": s, "n_atoms": 3}) for s in ("high", "low", None))
    assert high != low != unknown != high
    assert make(name, **rep.parameters).version == rep.version
    assert make(name, max_atoms=12, conditions={"stability": CATEGORIES["stability"]}).version != rep.version
    with pytest.raises(UserError, match="'medium' is not one of high, low"):
        rep.prompt({"stability": "medium"})
    policy = policy_of(rep)
    policy.guide(2.0)
    table = PromptTable.of([225, 221], [[11, 17], [38, 22, 8, 8, 8]], {"stability": [0.0, 1.0]})
    drawn = asking(table, "grid.stability=[high,low]", "grid.n_atoms=[2,5]").draw(24, np.random.default_rng(0), policy)
    assert {(c["stability"], c["n_atoms"]) for c in drawn} == {(s, n) for s in ("high", "low") for n in (2, 5)}
    assert all(c["space_group"] == {2: 225, 5: 221}[c["n_atoms"]] for c in drawn if "space_group" in c)
    rollout = sample(policy, drawn, torch.Generator().manual_seed(0))
    again, _ = policy.token_logprobs(rollout.ids, conditions=drawn)
    assert (again - rollout.logprobs).abs()[rollout.mask].max() < 1e-4


def test_what_is_left_open_follows_crystals_with_such_properties():
    def fitting(**asked):
        return TABLE._fitting(asked, OF_TABLE).tolist()

    near = fitting(density=5.0)  # within 0.4, or the 20 nearest
    assert len(near) == 20 and all(abs(DENSITIES[i] - 5) <= 1.4 for i in near) and all(i % 4 != 3 for i in near)
    assert min(fitting(density=99.0)) >= 172  # beyond the range: the largest
    assert all(i % 2 for i in fitting(density=5.0, space_group=221))
    assert all(i % 2 == 0 for i in fitting(crystal_system="cubic", n_atoms=2))
    assert fitting(crystal_system="hexagonal") == []
    found = TABLE.answering({"density": 5.0}, 30, np.random.default_rng(0), lambda c: True, OF_TABLE)
    assert all(c["density"] == 5 and c["space_group"] in (221, 225) and "gap" not in c for c in found)


def test_prompts_name_any_one_of_the_elements_that_must_be_there():
    def drawn(**asked):
        return TABLE.answering(asked, 60, np.random.default_rng(0), lambda c: True, OF_TABLE)

    some = drawn(element="O-Li-Ti")  # of the data's crystals those that have one of them, and three elements or more
    assert all(set(c["element"].split("-")) == {"Li", "O", "Ti"} and c["space_group"] == 221 for c in some)
    assert {c["element"].split("-")[0] for c in some} == {"Li", "O", "Ti"}
    some = drawn(chemical_system="Na-Cl")
    assert {c["element"] for c in some} == {"Na", "Cl"} and all(c["n_atoms"] == 2 for c in some)
    rep = made()
    assert rep.prompt({"element": "O-Li"}) == rep.prompt({"element": "O"}) != rep.prompt({"element": "Li-O"})
    speech = made("text").prompt({"element": "O-Li", "n_atoms": 3})
    assert speech == made("text").prompt({"element": "O", "n_atoms": 3})


# Labels


def records(n=8):
    found = [Record(f"{name}-{i}", s, {"band_gap": float(i)} if name != "quartz" else {})
             for i in range(n // 2) for name, s in list(CRYSTALS.items())]
    return found


def test_labels_are_columns_before_they_are_measured():
    some = records()
    measured = label(some, "density")
    assert measured == pytest.approx([r.structure.density for r in some])
    for r in some[:3]:
        r.properties["density"] = -1.0
    assert label(some, "density")[:3].tolist() == [-1.0] * 3 and np.isnan(label(some, "density")[3:]).all()
    gaps = label(some, "band_gap")
    assert np.isnan(gaps).sum() == 4 and gaps[0] == 0.0
    with pytest.raises(UserError, match=r"no column hardness .*band_gap"):
        label(some, "hardness")
    with pytest.raises(UserError, match=r"no column e_above_hull.*annotate"):
        label(some, "e_above_hull")


def encoded(names):
    short = Record("short", CRYSTALS["diamond"].copy().apply_strain(-0.9), {"band_gap": 99.0})
    some = [*records(), short, *records()]
    found = labels(some, names)
    rep = make("orbits", max_atoms=20, conditions=scales(names, {}, found))
    return encode(some, rep, found), rep, [r for r in some if r.id != "short"]


def test_labels_stay_with_their_crystals():
    split, _, some = encoded(["density", "band_gap", "crystal_system"])
    assert split.failures.total() == 1 and len(split) == len(some)
    assert split.prompts.properties["density"] == pytest.approx([r.structure.density for r in some], rel=1e-5)
    expected = [r.properties.get("band_gap", math.nan) for r in some]
    assert split.prompts.properties["band_gap"] == pytest.approx(expected, nan_ok=True)
    systems = [split.prompts.row(i, RNG)["crystal_system"] for i in range(len(split))]
    assert systems[:10] == ["cubic"] * 3 + ["hexagonal"] * 2 + ["trigonal", "tetragonal", "orthorhombic", "monoclinic",
                                                               "triclinic"]
    again = encode(some, make("orbits", max_atoms=20))  # the same tokens without any, from the same cache
    assert [i.tolist() for i in again.ids] == [i.tolist() for i in split.ids] and not again.prompts.properties


def told(split, rep, dropout, property_dropout, times=20):
    rng = np.random.default_rng(0)
    ids = torch.stack([split.batch(range(len(split)), rep, rng, dropout, property_dropout)[0][:, : rep.prompt_length]
                       for _ in range(times)])
    return ids - torch.tensor([0, *(rep.first[b] for b in ("space_group", "n_atoms", "element")),
                               *(rep.first[f"asked:{name}"] for name in rep.conditions)])


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_properties_are_left_out_together_and_each(rate):
    split, rep, _ = encoded(["density", "crystal_system"])
    assert list(rep.conditions) == ["crystal_system", "density"]
    found = told(split, rep, 0.1, rate)
    left_out = (found == 0).double().mean((0, 1))
    assert left_out[1:4].tolist() == pytest.approx([0.1] * 3, abs=0.03)
    assert left_out[4:].tolist() == pytest.approx([rate + (1 - rate) * rate] * 2, abs=0.04)
    both = (found[..., 4:] == 0).all(-1).double().mean()
    assert float(both) == pytest.approx(rate + (1 - rate) * rate**2, abs=0.04)


def test_missing_labels_are_never_told():
    split, rep, some = encoded(["band_gap"])
    found = told(split, rep, 0.0, 0.0, times=2)[..., 4]
    for i, r in enumerate(some):
        expected = 1 + rep.conditions["band_gap"].index(r.properties["band_gap"]) if "band_gap" in r.properties else 0
        assert found[:, i].tolist() == [expected] * 2
    assert (found == 0).any() and (found == 1).any()  # a gap of 0 is told, and none is not


def test_scales_are_fitted_but_for_what_is_given():
    values = {"x": np.linspace(1, 5, 100), "y": np.linspace(1, 5, 100)}
    found = scales(["x", "y", "crystal_system"], {"x": {"bins": 8, "low": 0.0}}, values)
    assert found["x"] == {"kind": "linear", "low": 0.0, "high": pytest.approx(5, abs=0.01), "bins": 8}
    assert found["y"]["bins"] == 64 and found["crystal_system"]["kind"] == "category"
    with pytest.raises(UserError, match=r"conditions\.x: no values"):
        scales(["x"], {}, {"x": np.full(3, np.nan)})
    with pytest.raises(UserError, match=r"conditions\.x: .*bin\b"):
        scales(["x"], {"x": {"bin": 8}}, values)


# Learning


@pytest.fixture(scope="module")
def salts(tmp_path_factory):
    """A policy trained for seconds on one kind of salt of many sizes, in a folder."""
    folder = tmp_path_factory.mktemp("salts")
    lengths = np.random.default_rng(0).uniform(3, 7, 160)
    crystals = [from_spacegroup("Pm-3m", Lattice.cubic(a), ["Cs", "Cl"], [[0, 0, 0], [0.5] * 3])
                for a in lengths]
    samples.write(folder / "data", crystals, {"length": lengths})
    pretrain(load("pretrain", [f"data={folder}/data/samples.parquet", f"output={folder}/run",
                               "conditions=density,length", "policy=tiny", "policy.hidden_size=64",
                               "policy.layers=2", "policy.dropout=0",
                               "policy.representation_parameters.conditions.density.kind=log",
                               "policy.representation_parameters.max_atoms=4", "steps=150", "batch=32",
                               "learning_rate=5e-3", "warmup=10", "ema=0.95", "sample_every=0", "evaluate_every=150",
                               "precision=fp32", "threads=1"]))
    return folder / "run" / "policy"


def asked_for(policy, prompts, condition, n=40):
    conditions = prompts.answering(condition, n, np.random.default_rng(0), policy.representation.possible,
                                   policy.representation.conditions)
    return decode(policy, sample(policy, conditions, torch.Generator().manual_seed(0)))


def test_a_policy_learns_to_heed_what_is_asked(salts):
    policy, prompts = CrystalPolicy.load(str(salts))
    assert set(policy.representation.conditions) == set(prompts.properties) == {"density", "length"}
    assert [scale.kind for scale in policy.representation.conditions.values()] == ["log", "linear"]
    assert "conditions=density,length" in (salts / "README.md").read_text(encoding="utf-8")
    for asked in (1.2, 6.0):  # of 0.8 to 10.4 g/cm³
        found = np.array([s.density for s in asked_for(policy, prompts, {"density": asked})])
        assert np.median(np.abs(np.log(found / asked))) < 0.35  # without regard to it 0.55 and 1.05
    short, long = (np.array([s.lattice.a for s in asked_for(policy, prompts, {"length": a})]) for a in (3.5, 6.5))
    assert np.median(np.abs(short - 3.5)) < 0.4 and np.median(np.abs(long - 6.5)) < 0.4
    free = np.array([s.lattice.a for s in asked_for(policy, prompts, {})])
    assert free.std() > 0.7  # nothing asked: all sizes


def test_the_shipped_policy_heeds_properties():
    policy, prompts = CrystalPolicy.load("shipped")
    assert set(policy.representation.conditions) == set(prompts.properties) == {
        "density", "hhi_production", "hhi_reserve", "e_above_hull", "stability", "band_gap"}
    rng = np.random.default_rng(0)
    same = prompts.answering({"n_atoms": 4}, 48, rng, policy.representation.possible)  # all else alike
    policy.guide(2.0)
    medians = []
    for asked in (3.0, 12.0):
        rollout = sample(policy, [c | {"density": asked} for c in same], torch.Generator().manual_seed(0))
        medians.append(np.median([crystal.density for crystal in decode(policy, rollout)]))
    assert medians[1] > medians[0] + 2  # g/cm³


# Sampling


@pytest.mark.parametrize(("given", "expected"), [
    ({}, [{}]),
    ({"density": 5}, [{"density": 5}]),
    ({"density": "3,5.5", "element": "Na, No"}, [{"density": d, "element": e} for d in (3, 5.5) for e in ("Na", "No")]),
    ({"density": [3, 5], "neutral": True}, [{"density": d, "neutral": True} for d in (3, 5)]),
    ({"elements": "Li,Fe,O"}, [{"elements": "Li,Fe,O"}]), ({"elements": ["Li", "O"]}, [{"elements": ["Li", "O"]}]),
    ({"elements": ["Li-O", "Na-O"]}, [{"elements": "Li-O"}, {"elements": "Na-O"}]),
    ({"chemical_system": "Li-O,Na-O"}, [{"chemical_system": "Li-O"}, {"chemical_system": "Na-O"}]),
    ({"chemical_system": "Li,O"}, [{"chemical_system": "Li,O"}]),
    ({"element": "Li-O,No"}, [{"element": "Li-O"}, {"element": "No"}])])
def test_several_values_are_every_combination(given, expected):
    assert combinations(given) == expected


def test_guidance_is_by_default_where_a_property_is_asked_for():
    policy = policy_of(made("orbits", max_atoms=6))
    assert guidance(None, policy, [{"space_group": 225}, {"density": 3}]) == GUIDANCE == 2.0
    assert guidance(None, policy, [{"space_group": 225, "formula": "NaCl"}, {}]) == 1.0
    assert guidance(1.5, policy, [{}]) == 1.5 and guidance(0.0, policy, [{"density": 3}]) == 0.0
    assert guidance(None, policy_of(make("orbits", max_atoms=6)), [{"n_atoms": 2}]) == 1.0


def test_no_value_is_the_users_mistake():
    with pytest.raises(UserError, match=r"condition\.density: an empty list"):
        combinations({"density": []})


def test_the_command_samples_every_combination(salts, tmp_path):
    run_sample(load("sample", [f"policy={salts}", f"output={tmp_path}", "n=6", "guidance=1.5", "batch=10",
                               "condition.length=3.5,6.5", "condition.space_group=[221,null]"]))
    table = samples.read(tmp_path)
    asked = [json.loads(text) for text in table.columns["asked"]]
    assert asked[::6] == [{"length": a} | g for a in (3.5, 6.5) for g in ({"space_group": 221}, {})]
    lengths = np.array([crystal.lattice.a for crystal in table.crystals])
    assert np.median(np.abs(lengths[:12] - 3.5)) < 0.5 and np.median(np.abs(lengths[12:] - 6.5)) < 0.5
    for arguments, message in ((["condition.hardness=3"], "cannot ask for hardness; known: .*density, length"),
                               (["condition.length=long"], "no number"), (["guidance=-1"], "at least 0")):
        with pytest.raises(UserError, match=message):
            run_sample(load("sample", [f"policy={salts}", f"output={tmp_path}", "n=6", *arguments]))


# Fine-tuning


def asking(table, *settings):
    return Asking(table, load("finetune", [f"prompts.{setting}" for setting in settings]))


def test_prompts_of_a_grid_ask_for_every_combination():
    policy = policy_of(make("orbits", max_atoms=12, conditions=OF_TABLE))
    some = asking(TABLE, "grid.density=[3,8]", "grid.space_group=[221,225]", "n_atoms=0.5")
    drawn = some.draw(200, np.random.default_rng(0), policy)
    pairs = [(c["density"], c["space_group"]) for c in drawn]
    for pair in [(3, 221), (3, 225), (8, 221), (8, 225)]:
        assert pairs.count(pair) / 200 == pytest.approx(0.25, abs=0.1)
    assert np.mean(["n_atoms" in c for c in drawn]) == pytest.approx(0.5, abs=0.12)
    assert all(c.get("n_atoms", 5) == {221: 5, 225: 2}[c["space_group"]] for c in drawn if "n_atoms" in c)
    assert all("element" in c and "gap" not in c for c in drawn)
    shares = some.shares(policy)
    assert shares[221, 5] == pytest.approx(0.25, abs=0.05) and set(shares) == {(221, 5), (225, 2)}
    # One step's prompts follow from its generator alone.
    assert drawn == some.draw(200, np.random.default_rng(0), policy)


def test_properties_are_told_where_they_earn():
    rng, policy = np.random.default_rng(0), policy_of(make("orbits", max_atoms=12, conditions=OF_TABLE))
    for reward, setting, expected in (("novelty+stability", "power=1", 0.0), ("condition+novelty", "power=1", 1.0),
                                      ("condition*novelty", "properties.gap=0.5", 0.5),
                                      ("novelty", "properties.gap=0.5", 0.5)):
        some = Asking(TABLE, load("finetune", [f"reward={reward}", f"prompts.{setting}"]))
        drawn = some.draw(400, rng, policy)
        assert np.mean(["gap" in c for c in drawn]) == pytest.approx(expected, abs=0.1), reward
        assert all("space_group" in c for c in drawn)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_prompts_of_a_file_are_its_rows(tmp_path, suffix):
    table = pd.DataFrame({"density": [3.5, None], "space_group": [225, None], "formula": ["NaCl", "SrTiO3"]})
    file = tmp_path / f"asked.{suffix}"
    if suffix == "csv":
        table.to_csv(file, index=False)
    else:
        table.to_json(file, orient="records", lines=True)
    some = asking(TABLE, f"file={file}")
    assert some.asked == [{"density": 3.5, "space_group": 225, "formula": "NaCl"}, {"formula": "SrTiO3"}]
    policy = policy_of(make("orbits", max_atoms=12, conditions=OF_TABLE))
    drawn = some.draw(20, np.random.default_rng(0), policy)
    assert all(c["space_group"] == 225 and c["density"] == 3.5 for c in drawn if c["formula"] == "NaCl")
    assert {c["formula"] for c in drawn} == {"NaCl", "SrTiO3"} and all("element" not in c for c in drawn)


@pytest.mark.parametrize(("settings", "message"), [
    (["grid.density=3", "file=x.csv"], "cannot both"), (["file=nowhere.csv"], "no such file"),
    (["file=x.txt"], "no table; known: .*csv"), (["properties.hardness=1"], "hardness: .*it knows density, gap"),
    (["properties.gap=2"], "between 0 and 1"), (["grid.density=[]"], "empty list")])
def test_prompts_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        asking(TABLE, *settings)


def test_trl_has_no_prompts_for_the_grammar_alone():
    for hard in ("formula=NaCl", "element=Na-Cl", "chemical_system=Na-Cl"):
        with pytest.raises(UserError, match="algorithm=grpo"):
            Asking(TABLE, load("finetune", ["algorithm=trl", f"prompts.grid.{hard}"]))
    Asking(TABLE, load("finetune", ["algorithm=trl", "prompts.grid.element=[Na,Cl]"]))


def test_prompts_of_a_grid_ask_for_all_elements_of_a_system():
    policy = policy_of(make("orbits", max_atoms=12))
    drawn = asking(TABLE, "grid.chemical_system=[Na-Cl,Li-Fe-O]").draw(40, np.random.default_rng(0), policy)
    assert {c["element"] for c in drawn} == {"Na", "Cl", "Li", "Fe", "O"}
    found = decode(policy, sample(policy, drawn, torch.Generator().manual_seed(0)))
    assert all(set(s.symbol_set) == set(c["chemical_system"].split("-"))
               for s, c in zip(found, drawn, strict=True))
    with pytest.raises(UserError, match="too few for 3 elements"):
        asking(TABLE, "grid.chemical_system=Li-Fe-O", "grid.n_atoms=2").check(policy)
