"""What all algorithms have: they learn, ratios start at 1, the KL and entropy by kind of token, exact checkpoints."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from toy_learning import Bandit, cubic_share, play, rollout_of, settings, tiny

from policies.model import CrystalPolicy
from policies.representations import REPRESENTATIONS
from policies.representations import make as make_representation
from rlgen.algorithms import check, make
from rlgen.algorithms.kinds import Kinds, Tally
from rlgen.config import load
from rlgen.types import UserError

CPU = Accelerator(cpu=True)
ALGORITHMS = {"grpo": {"learning_rate": 8e-3},
              "rloo": {"learning_rate": 8e-3, "loss_type": "dr_grpo"},
              "ppo": {"learning_rate": 6e-3, "num_iterations": 2, "scale_rewards": "batch"},
              "gvpo": {"learning_rate": 6e-3, "num_iterations": 2, "beta": 0.02},
              "gvpo behind the trunk": {"learning_rate": 3e-2, "num_iterations": 8, "beta": 0.02, "past": 3.0,
                                        "adapter": 32}}


def learner_of(name, policy, **changes):
    return make(settings(name=name.split()[0], **(ALGORITHMS[name] | changes)), policy, CPU)


def update(learner, seed, rewards=None, **options):
    rollout = rollout_of(learner.policy, seed, **options)
    rewards = cubic_share(learner.policy, rollout) if rewards is None else rewards
    return learner.update(rollout, rewards, np.random.default_rng(seed)), float(rewards.mean())


# Learning


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_mean_reward_rises(name, seed):
    learner, earned = learner_of(name, tiny(seed)), []
    while len(earned) < 25 and not (len(earned) >= 8 and np.mean(earned[-5:]) > 0.85):  # the best reachable is 1
        earned.append(update(learner, seed * 1000 + len(earned), atoms=(1,))[1])
    assert np.mean(earned[:3]) < 0.6  # half of the hundredths are below 50
    assert np.mean(earned[-5:]) > 0.85, earned


REWARDS, BETA = np.array([0.2, 0.0, 1.0, 0.6]), 0.5


def best_policy(start):
    """The maximum of E[r] - β KL(π || π_ref): π ∝ π_ref exp(r / β)."""
    weights = start.probabilities().double() * torch.tensor(REWARDS / BETA).exp()
    return weights / weights.sum()


def best_policy_for_reverse(start):
    """The maximum of E[r] - β KL(π_ref || π): π = β π_ref / (c - r), with c so that it is a distribution."""
    reference, low, high = start.probabilities().double(), REWARDS.max(), REWARDS.max() + 10
    for _ in range(100):
        middle = (low + high) / 2
        found = BETA * reference / (middle - torch.tensor(REWARDS))
        low, high = (middle, high) if found.sum() > 1 else (low, middle)
    return found


def divergence(p, q):
    return float((p * (p / q).log()).sum())


@pytest.mark.parametrize(
    ("name", "changes", "group_size"),
    [
        ("rloo", {"loss_type": "dr_grpo"}, 4),
        ("grpo", {"scale_rewards": "none"}, 256),  # with groups of n, GRPO's advantages are 1 - 1/n of RLOO's
        ("ppo", {"scale_rewards": "none", "minibatch": 128, "num_iterations": 1}, 1),
        ("gvpo", {}, 4),
    ],
)
def test_the_best_policy_of_a_bandit_is_found(name, changes, group_size):
    bandit = Bandit([0.0, 1.0, -1.0, 0.5])
    best, other = best_policy(bandit), best_policy_for_reverse(bandit)
    learner = learner_of(name, bandit, beta=BETA, use_bias_correction_kl=True, **changes | {"learning_rate": 0.02})
    # GVPO learns at every step from all that was drawn before.
    found = play(learner, bandit, REWARDS, steps=60 if name == "gvpo" else 250, group_size=group_size)
    assert divergence(found, best) < 1e-3
    assert divergence(found, other) > 0.05


def test_without_its_correction_the_kl_is_the_reverse_one():
    bandit = Bandit([0.0, 1.0, -1.0, 0.5])
    best, other = best_policy(bandit), best_policy_for_reverse(bandit)
    learner = learner_of("grpo", bandit, beta=BETA, scale_rewards="none", learning_rate=0.02)
    found = play(learner, bandit, REWARDS, steps=250, group_size=256)
    assert divergence(found, other) < 1e-3
    assert divergence(found, best) > 0.05


def test_equal_rewards_teach_nothing():
    for name in ("grpo", "rloo"):
        learner = learner_of(name, tiny())
        before = copy.deepcopy(learner.policy.state_dict())
        stats, _ = update(learner, 0, np.full(32, 0.3))
        assert stats["policy/with_advantage"] == 0
        assert all(torch.equal(before[k], v) for k, v in learner.policy.state_dict().items())


def test_gvpo_learns_from_what_any_policy_drew():
    """Arms drawn uniformly, once, and learnt from for 150 passes: the best policy all the same."""
    bandit, uniform = Bandit([0.0, 1.0, -1.0, 0.5]), Bandit([0.0] * 4)
    best = best_policy(bandit)
    learner = learner_of("gvpo", bandit, beta=BETA, learning_rate=0.02, num_iterations=150)
    drawn = uniform.draw(256, torch.Generator().manual_seed(0), 8)
    earned = REWARDS[drawn.ids[:, 1].numpy()]
    stats = learner.update(drawn, earned, np.random.default_rng(0))
    assert divergence(bandit.probabilities().double(), best) < 1e-3
    assert stats["loss/policy"] > 0
    again = learner.update(uniform.draw(256, torch.Generator().manual_seed(1), 8), earned, np.random.default_rng(0))
    assert abs(again["policy/foresight"]) < 0.4  # of rewards that have nothing to do with what was drawn


def test_gvpo_foresees_what_it_has_learnt():
    """The correlation of what was expected of fresh samples with what they earned, before they are learnt from."""
    bandit = Bandit([0.0, 0.5, -0.5, 0.0])
    learner, seen = learner_of("gvpo", bandit, beta=BETA, learning_rate=0.02, num_iterations=10), []
    for step in range(20):
        drawn = bandit.draw(64, torch.Generator().manual_seed(step), 8)
        stats = learner.update(drawn, REWARDS[drawn.ids[:, 1].numpy()], np.random.default_rng(step))
        seen.append(stats["policy/foresight"])
    assert seen[0] == 0 and seen[-1] > 0.95


def test_gvpo_keeps_what_was_scored_through_a_rollback_and_forgets_other_rewards(tmp_path):
    learner = learner_of("gvpo", tiny())
    learner.begin("validity")
    update(learner, 0)
    learner.save(tmp_path)
    update(learner, 1)
    learner.load(tmp_path)
    assert len(learner.rewards) == len(learner.ids) == 64 and sum(learner.sizes) == 64
    learner.begin("validity")
    assert len(learner.rewards) == 64
    learner.begin("novelty")
    assert learner.rewards == learner.ids == learner.sizes == []
    update(learner, 2)
    resumed = learner_of("gvpo", tiny())
    learner.save(tmp_path)
    resumed.load(tmp_path)
    resumed.begin("novelty")
    assert resumed.rewards == learner.rewards and all(map(torch.equal, resumed.ids, learner.ids))


def test_behind_a_frozen_trunk_the_same_is_learnt_as_through_it():
    """A step on what was kept, hidden states and masks, is the step that all of the network's passes would give."""
    kept = learner_of("gvpo behind the trunk", tiny(), minibatch=16)
    torch.manual_seed(0)
    for parameter in kept.policy.adapter.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    through = learner_of("gvpo", copy.deepcopy(kept.policy))
    through.reference = kept.reference
    rollout = rollout_of(kept.policy, 0, atoms=(1, 2, 5))
    rewards = np.random.default_rng(0).random(len(rollout.ids))
    for learner in (kept, through):
        learner._keep(rollout, rewards)
    rows, tally = list(range(5, 29)), Tally(kept.kinds)
    found, wanted = (learner._expected(rows, 10, 1.0, tally) for learner in (kept, through))
    assert torch.allclose(found, wanted, atol=1e-5) and found.abs().max() > 1e-3
    found.square().sum().backward()
    wanted.square().sum().backward()
    for one, other in zip(kept.policy.adapter.parameters(), through.policy.adapter.parameters(), strict=True):
        assert one.grad is not None and torch.allclose(one.grad, other.grad, atol=1e-6)
    assert all(p.grad is None for p in kept.policy.blocks.parameters())


def test_an_adapter_alone_learns_and_lies_in_the_policy(tmp_path):
    learner = learner_of("gvpo behind the trunk", tiny())
    before = copy.deepcopy(learner.policy.state_dict())
    assert torch.equal(learner.policy.adapter(torch.ones(3, 32)), torch.ones(3, 32))
    stats, _ = update(learner, 0)
    changed = {k for k, v in learner.policy.state_dict().items() if not torch.equal(before[k], v)}
    assert changed == {f"adapter.{part}.{kind}" for part in ("into", "out") for kind in ("weight", "bias")}
    assert stats["policy/foresight"] == 0 and stats["policy/kl"] > 0
    learner.policy.save_pretrained(tmp_path)
    again = CrystalPolicy.from_pretrained(tmp_path).eval()
    rollout = rollout_of(learner.policy, 1)
    assert torch.equal(again.token_logprobs(rollout.ids)[0], learner.policy.token_logprobs(rollout.ids)[0])
    assert not torch.equal(again.token_logprobs(rollout.ids)[0], learner.reference.token_logprobs(rollout.ids)[0])
    learner_of("gvpo behind the trunk", again, adapter=99)  # goes on with what it has
    assert again.adapter.into.out_features == 32


def test_what_was_kept_is_the_same_after_a_resume(tmp_path):
    """Hidden states are not written down: they are computed again from the same rows together, to the last bit."""
    learner = learner_of("gvpo behind the trunk", tiny(), minibatch=12)
    for seed in range(3):
        update(learner, seed)
    learner.save(tmp_path)
    resumed = learner_of("gvpo behind the trunk", tiny(), minibatch=12)
    resumed.load(tmp_path)
    assert resumed.batches == learner.batches == [32, 32, 32] and len(resumed.hidden) == 96
    assert all(torch.equal(resumed.hidden[i], learner.hidden[i]) for i in range(96))
    assert all(np.array_equal(resumed.legal[i], learner.legal[i]) for i in range(96))
    for one in (learner, resumed):
        update(one, 3)
    assert all(map(torch.equal, learner.policy.state_dict().values(), resumed.policy.state_dict().values()))
    learner.load(tmp_path)  # a rollback: what was found since stays known
    assert len(learner.hidden) == len(learner.rewards) == 128


def test_the_value_head_learns_what_prompts_are_worth():
    bandit, worth = Bandit([0.0] * 4), np.array([0.1, 0.9, 0.4, 0.3])
    learner = learner_of("ppo", bandit, learning_rate=0.0, value_learning_rate=1e-2, minibatch=64)
    stats = []
    for step in range(30):
        rollout = bandit.draw(128, torch.Generator().manual_seed(step), 4, prompts=(0, 1, 2, 3))
        earned = worth[rollout.ids[:, 0].numpy()] + 0.05 * np.random.default_rng(step).normal(size=128)
        stats.append(learner.update(rollout, earned, np.random.default_rng(step)))
    assert stats[0]["value/explained_variance"] == 0 and stats[-1]["value/explained_variance"] > 0.9
    assert stats[-1]["loss/value"] < 0.1 * stats[0]["loss/value"]
    prompts = learner.policy.hidden(torch.arange(4)[:, None])
    assert learner.value_head(prompts)[:, 0].tolist() == pytest.approx(worth.tolist(), abs=0.05)


def test_the_value_head_does_not_move_the_policy():
    learner = learner_of("ppo", tiny())
    before = copy.deepcopy(learner.policy.state_dict())
    learner.estimate = lambda rollout, rewards: {
        "advantage": torch.zeros_like(rollout.logprobs), "value": torch.zeros_like(rollout.logprobs),
        "return": torch.ones_like(rollout.logprobs)}  # fmt: skip
    learner.explained = 0.0
    stats, _ = update(learner, 0)
    assert stats["loss/value"] > 0.1 and learner.value_head.out.bias.abs() > 0
    assert all(torch.equal(before[k], v) for k, v in learner.policy.state_dict().items())


# Ratios


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_first_ratios_are_exactly_one(temperature, level):
    """So that a clip of nothing at all clips nothing."""
    learner = learner_of("grpo", tiny(), epsilon=0.0, epsilon_high=0.0, importance_sampling_level=level)
    stats, _ = update(learner, 0, temperature=temperature)
    assert stats["policy/clip_fraction"] == 0
    assert 0 < stats["policy/logprob_gap"] < 1e-5 and "policy/replay_ratio" not in stats


def test_later_steps_are_compared_with_the_policy_that_drew():
    learner = learner_of("grpo", tiny(), num_iterations=3, minibatch=8)
    stats, _ = update(learner, 0)
    assert stats["policy/old_kl"] > 1e-4 and stats["policy/clip_fraction"] > 0


def test_replayed_rows_keep_the_logprobs_of_the_policy_that_drew_them():
    old, policy = tiny(), tiny(1)
    drawn = rollout_of(old, 0)
    learner = learner_of("grpo", policy)
    rewards = cubic_share(old, drawn)
    now, _ = policy.token_logprobs(drawn.ids)
    expected = (now - drawn.logprobs).exp()
    half = torch.arange(32) < 16
    fresh = dataclasses.replace(drawn, logprobs=torch.where(half[:, None], drawn.logprobs, now.detach()), replayed=half)
    stats = learner.update(fresh, rewards, np.random.default_rng(0))
    chosen = drawn.mask & half[:, None]
    assert stats["policy/replay_ratio"] == pytest.approx(float(expected[chosen].mean()), rel=1e-4)
    outside = ((expected < 0.8) | (expected > 1.28)) & chosen
    assert stats["policy/clip_fraction"] == pytest.approx(float(outside.sum() / drawn.mask.sum()), abs=1e-6)
    assert stats["policy/logprob_gap"] < 1e-5  # of the fresh rows alone


def test_rows_drawn_ahead_by_an_older_policy_are_weighted_too():
    """As a pipeline draws them: nothing marks them but their log-probabilities."""
    old, learner = tiny(), learner_of("grpo", tiny(1))
    drawn = rollout_of(old, 0)
    expected = (learner.policy.token_logprobs(drawn.ids)[0].detach() - drawn.logprobs).exp()
    stats = learner.update(drawn, cubic_share(old, drawn), np.random.default_rng(0))
    outside = ((expected < 0.8) | (expected > 1.28)) & drawn.mask
    assert stats["policy/clip_fraction"] == pytest.approx(float(outside.sum() / drawn.mask.sum()), abs=1e-6)
    assert stats["policy/clip_fraction"] > 0.1


# KL and entropy by kind


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_kinds_are_the_blocks_of_the_vocabulary(name):
    representation = make_representation(name, max_atoms=8)
    kinds = Kinds(representation, torch.device("cpu"))
    assert len(kinds.of) == len(representation.vocabulary)
    for kind, first in representation.first.items():
        assert kinds.names[kinds.of[first]] == kind
        assert kinds.names[kinds.of[first + representation.sizes[kind] - 1]] == kind


def test_kl_and_entropy_by_kind_add_up():
    learner = learner_of("grpo", tiny())
    learner.reference.load_state_dict(tiny(5).state_dict())
    rollout = rollout_of(learner.policy, 0)
    logprobs, entropy = learner.policy.token_logprobs(rollout.ids)
    reference, _ = learner.reference.token_logprobs(rollout.ids)
    kl = (reference - logprobs).exp() - (reference - logprobs) - 1
    stats = learner.update(rollout, cubic_share(learner.policy, rollout), np.random.default_rng(0))
    rep = learner.policy.representation
    answer, seen = rollout.ids[:, rep.prompt_length :], 0
    for kind, first in rep.first.items():
        here = rollout.mask & (answer >= first) & (answer < first + rep.sizes[kind])
        seen += int(here.sum())
        assert (f"policy/kl_{kind}" in stats) == bool(here.any())
        if here.any():
            assert stats[f"policy/kl_{kind}"] == pytest.approx(float(kl[here].mean()), rel=1e-4, abs=1e-6)
            assert stats[f"policy/entropy_{kind}"] == pytest.approx(float(entropy[here].mean()), rel=1e-4, abs=1e-6)
    assert seen == rollout.mask.sum()
    assert stats["policy/kl"] == pytest.approx(float(kl[rollout.mask].mean()), rel=1e-4)


def test_beta_by_kind_weights_each_token_of_the_kl():
    """Without advantages the gradient is that of the weighted KL, here of coordinates and elements."""
    learner = learner_of("grpo", tiny(), beta=0.0, beta_by_kind={"element": 2.0, "coordinate": 0.5}, max_grad_norm=1e9)
    learner.reference.load_state_dict(tiny(5).state_dict())
    rollout = rollout_of(learner.policy, 0)
    rep = learner.policy.representation
    answer = rollout.ids[:, rep.prompt_length :]
    weight = sum(value * ((answer >= rep.first[kind]) & (answer < rep.first[kind] + rep.sizes[kind]))
                 for kind, value in {"element": 2.0, "coordinate": 0.5}.items())  # fmt: skip
    reference, _ = learner.reference.token_logprobs(rollout.ids)
    d = reference - learner.policy.token_logprobs(rollout.ids)[0]
    (weight * (d.exp() - d - 1) * rollout.mask).sum().div(rollout.mask.sum()).backward()
    expected = {name: p.grad.clone() for name, p in learner.policy.named_parameters()}
    learner.policy.zero_grad()
    found = {}
    for name, p in learner.policy.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: found.__setitem__(name, p.grad.clone()))
    learner.update(rollout, np.full(32, 0.5), np.random.default_rng(0))
    for name, gradient in expected.items():
        assert gradient.norm() > 0 and (found[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def test_an_entropy_bonus_acts_on_its_kind():
    """Of four arms the bonus of the first two's kind is earned when one of those is drawn."""
    start = [2.0, -1.0, 0.0, 0.0]
    found = {}
    for name, changes in {"none": {}, "all": {"entropy_coef": 1.0}, "low": {"entropy_by_kind": {"low": 1.0}}}.items():
        bandit = Bandit(start)
        learner = learner_of("grpo", bandit, learning_rate=0.02, beta=0.0, **changes)
        play(learner, bandit, np.zeros(4), steps=60)
        found[name] = float(-(bandit.probabilities() * bandit.probabilities().log()).sum())
    assert found["none"] == pytest.approx(float(torch.distributions.Categorical(logits=torch.tensor(start)).entropy()))
    assert found["low"] > found["none"] + 0.1 and found["all"] > found["none"] + 0.1
    assert found["all"] <= np.log(4) + 1e-6


def test_entropy_has_a_gradient_only_when_asked():
    policy = tiny()
    ids = rollout_of(policy, 0).ids
    assert not policy.token_logprobs(ids)[1].requires_grad
    logprobs, entropy = policy.token_logprobs(ids, train_entropy=True)
    (logprobs.sum() + entropy.sum()).backward()
    assert all(p.grad.isfinite().all() for p in policy.parameters())


def test_unknown_kinds_are_told():
    for key in ("beta_by_kind", "entropy_by_kind"):
        with pytest.raises(UserError, match=rf"algorithm.{key}: no tokens of kind letter; known: .*element"):
            learner_of("grpo", tiny(), **{key: {"letter": 1.0}})
    with pytest.raises(UserError, match=r"algorithm.beta_by_kind.element=-1.0: must be"):
        learner_of("grpo", tiny(), beta_by_kind={"element": -1.0})


# The KL's weight


def test_kl_holds_the_policy_back():
    moved = {}
    for beta in (0.0, 5.0):
        learner = learner_of("grpo", tiny(), beta=beta)
        for step in range(12):
            stats, _ = update(learner, step, atoms=(1,))
        moved[beta] = stats["policy/kl"]
    assert moved[5.0] < 0.5 * moved[0.0]


def test_beta_is_steered_to_the_target():
    reached = {}
    for target in (0.02, 0.1):
        bandit, stats = Bandit([0.0] * 4), []
        learner = learner_of("grpo", bandit, beta=0.2, target_kl=target, learning_rate=0.02, scale_rewards="none")
        for step in range(150):
            rollout = bandit.draw(256, torch.Generator().manual_seed(step), 8)
            earned = REWARDS[rollout.ids[:, 1].numpy()]
            stats.append(learner.update(rollout, earned, np.random.default_rng(step)))
        assert np.mean([s["policy/kl"] for s in stats[-50:]]) == pytest.approx(target, rel=0.15)
        reached[target] = np.mean([s["policy/beta"] for s in stats[-50:]])
    assert reached[0.02] > 1.5 * reached[0.1] > 0.2


# State


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_learner_goes_on_exactly_from_its_checkpoint(name, tmp_path):
    changes = {"beta": 0.1, "target_kl": 1e-3}
    whole = learner_of(name, tiny(), **changes)
    for step in range(3):
        if step == 1:
            whole.scale_learning_rate(0.5)
            whole.save(tmp_path)
        update(whole, step)
    cut = learner_of(name, tiny(), **changes)
    cut.load(tmp_path)
    assert cut.learning_rate == pytest.approx(0.5 * cut.config.learning_rate) and cut.beta_scale != 1
    for step in (1, 2):
        stats, _ = update(cut, step)
    assert all(torch.equal(a, b) for a, b in zip(whole.policy.parameters(), cut.policy.parameters(), strict=True))
    assert whole.beta_scale == cut.beta_scale and stats["policy/beta"] != 0.1
    if name == "ppo":
        assert all(map(torch.equal, whole.value_head.parameters(), cut.value_head.parameters()))
        assert cut.value_head.out.weight.any()


def test_the_policys_folder_has_no_value_head(tmp_path):
    from safetensors.torch import load_file

    from policies.model import CrystalPolicy

    learner = learner_of("ppo", tiny())
    update(learner, 0)
    learner.save(tmp_path)
    assert load_file(tmp_path / "policy" / "model.safetensors").keys() == dict(tiny().named_parameters()).keys()
    assert torch.equal(CrystalPolicy.from_pretrained(tmp_path / "policy").embed.weight, learner.policy.embed.weight)


def test_scaling_moves_all_learning_rates():
    learner = learner_of("ppo", tiny())
    before = [group["lr"] for group in learner.optimiser.param_groups]
    learner.scale_learning_rate(0.1)
    assert [group["lr"] for group in learner.optimiser.param_groups] == [0.1 * lr for lr in before]
    assert learner.learning_rate == 0.1 * before[0]


# Settings


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["algorithm=grpo", "algorithm.scale_rewards=max"], "algorithm.scale_rewards=max; known: none, group, batch"),
        (["algorithm=grpo", "algorithm.loss_type=mean"], "algorithm.loss_type=mean; known: dapo, bnpo, grpo, dr_grpo"),
        (["algorithm=grpo", "algorithm.importance_sampling_level=crystal"], "known: token, sequence"),
        (["algorithm=dpo"], "unknown algorithm=dpo; known: grpo, gvpo, ppo, rloo, trl"),
        (["algorithm.name=ppo"], "algorithm=gvpo has no algorithm.name"),
        (["algorithm.epsilon=0.1"], "algorithm=gvpo has no algorithm.epsilon; it has algorithm.group_size"),
        (["algorithm=grpo", "algorithm.past=3"], "algorithm=grpo has no algorithm.past"),
        (["algorithm.group_size=1"], "algorithm.group_size=1: must be at least 2"),
        (["batch=20"], "batch=20 is no multiple of algorithm.group_size=8"),
        (["algorithm=grpo", "algorithm.beta=0", "algorithm.target_kl=0.1"], "algorithm.beta is 0"),
        (["algorithm=ppo", "algorithm.scale_rewards=group"], "compares no groups"),
        (["algorithm=gvpo", "algorithm.beta=0"], "must be above 0"),
        (["algorithm=gvpo", "algorithm.beta_by_kind.element=0"], "must be above 0"),
        (["algorithm=trl", "algorithm.target_kl=0.1"], "algorithm=trl has no algorithm.target_kl"),
    ],
)
def test_what_cannot_be_meant_is_told(arguments, says):
    with pytest.raises(UserError, match=says):
        check(load("finetune", arguments))


@pytest.mark.parametrize("name", ["grpo", "rloo", "ppo", "gvpo", "trl"])
def test_the_settings_of_every_algorithm_pass(name):
    config = load("finetune", [f"algorithm={name}"])
    check(config)
    assert config.algorithm.name == name
    check(load("finetune", ["algorithm=ppo", "algorithm.group_size=1"]))
