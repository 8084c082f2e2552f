"""GRPO learns, and TRL's trainer makes the same loss and gradient of the same rollout."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from omegaconf import OmegaConf

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from policies.representations import make
from policies.sampler import sample
from rlgen.algorithms.grpo import GRPO
from rlgen.config import load

SIZES = {"hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64, "dropout": 0.1}


def tiny(seed: int = 0) -> CrystalPolicy:
    torch.manual_seed(seed)
    return CrystalPolicy.create(make("atoms", max_atoms=8), **SIZES)


def settings(**changes):
    base = {"group_size": 8, "scale_rewards": "group",
            "epochs": 1, "minibatch": 1000, "learning_rate": 3e-3, "clip_low": 0.2, "clip_high": 0.28,
            "kl": 0.0, "max_grad_norm": 1.0, "temperature": 1.0}
    return SimpleNamespace(**(base | changes))


def rollout_of(policy, seed, prompts=4, size=8):
    conditions = [{"n_atoms": 1 + i % 3} for i in range(prompts) for _ in range(size)]
    return sample(policy, conditions, torch.Generator().manual_seed(seed),
                  group=[i for i in range(prompts) for _ in range(size)])


def cubic_share(policy, rollout):
    """(B,) share of lattice tokens that are the hundredths ".00Å": something a policy can learn to write."""
    p, first = policy.representation.prompt_length, policy.representation.first["hundredth"]
    return (rollout.ids[:, [p + 7, p + 9, p + 11]] < first + 50).float().mean(1).numpy()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mean_reward_rises(seed):
    policy = tiny(seed)
    learner = GRPO(policy, settings(), Accelerator(cpu=True))
    earned = []
    for step in range(40):
        rollout = rollout_of(policy, seed * 1000 + step)
        rewards = cubic_share(policy, rollout)
        earned.append(rewards.mean())
        learner.update(rollout, rewards, np.random.default_rng(step))
    assert np.mean(earned[:3]) < 0.6  # half of the hundredths are below 50
    assert np.mean(earned[-5:]) > 0.8  # the best reachable is 1


def test_kl_holds_the_policy_back():
    moved = {}
    for kl in (0.0, 5.0):
        policy = tiny()
        learner = GRPO(policy, settings(kl=kl), Accelerator(cpu=True))
        for step in range(12):
            rollout = rollout_of(policy, step)
            stats = learner.update(rollout, cubic_share(policy, rollout), np.random.default_rng(step))
        moved[kl] = stats["policy/kl"]
    assert moved[5.0] < 0.5 * moved[0.0]


def test_first_update_has_ratio_one_and_equal_rewards_teach_nothing():
    policy = tiny()
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    learner = GRPO(policy, settings(), Accelerator(cpu=True))
    rollout = rollout_of(policy, 0)
    stats = learner.update(rollout, np.full(32, 0.3), np.random.default_rng(0))
    assert stats["policy/clip_fraction"] == 0 and stats["policy/with_advantage"] == 0
    assert all(torch.equal(before[k], v) for k, v in policy.state_dict().items())


def keep_gradients(policy, kept, name):
    """What the parameters' gradients are when the optimiser is about to use them, by parameter."""
    kept[name] = {}
    for key, parameter in policy.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, key=key: kept[name].__setitem__(key, p.grad.clone()))


@pytest.mark.parametrize("scale", ["group", "none"])
def test_trl_makes_the_same_loss_and_gradient(tmp_path, scale):
    from rlgen.algorithms.trl import make_trainer

    ours, theirs = tiny(), tiny()
    reference = tiny(5)  # another policy, so that the KL is not zero
    rollout = rollout_of(ours, 3)
    rewards = cubic_share(ours, rollout)

    config = load("finetune", ["algorithm=trl", "batch=32", "steps=1", f"output={tmp_path}", "algorithm.kl=0.3",
                               "algorithm.max_grad_norm=1e9", "device=cpu", f"algorithm.scale_rewards={scale}"])
    collector = SimpleNamespace(
        draw=lambda policy, step: rollout,
        score=lambda policy, drawn: SimpleNamespace(rewards=rewards, scalars={}, breakdown=None))
    seen = {}
    trainer = make_trainer(config, theirs, collector, lambda step, experience, stats: seen.update(stats))
    trainer.ref_model.load_state_dict(reference.state_dict())
    gradients = {}
    keep_gradients(theirs, gradients, "theirs")
    trainer.train()

    learner = GRPO(ours, OmegaConf.merge(config.algorithm, {"minibatch": 32}), Accelerator(cpu=True))
    learner.reference.load_state_dict(reference.state_dict())
    keep_gradients(ours, gradients, "ours")
    stats = learner.update(rollout, rewards, np.random.default_rng(0))

    assert stats["policy/kl"] > 0.01
    assert float(seen["policy/kl"]) == pytest.approx(stats["policy/kl"], rel=1e-4)
    assert float(seen["policy/entropy"]) == pytest.approx(stats["policy/entropy"], rel=1e-4)
    assert float(seen["loss/policy"]) == pytest.approx(stats["loss/policy"] + 0.3 * stats["policy/kl"], rel=1e-3)
    assert gradients["ours"].keys() == dict(ours.named_parameters()).keys()
    for name, gradient in gradients["ours"].items():
        assert gradient.norm() > 1e-6, name
        assert (gradients["theirs"][name] - gradient).norm() < 1e-5 * gradient.norm(), name


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
