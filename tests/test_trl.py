"""TRL's trainer makes the same loss and gradient of the same rollout, in all variants that it and our loop have."""

from types import SimpleNamespace

import numpy as np
import pytest
from accelerate import Accelerator
from omegaconf import OmegaConf
from toy_learning import cubic_share, rollout_of, tiny

from rlgen.algorithms import make
from rlgen.algorithms.trl import make_trainer
from rlgen.config import load
from rlgen.types import UserError


def keep_gradients(policy, kept, name):
    """What the parameters' gradients are when the optimiser is about to use them, by parameter."""
    kept[name] = {}
    for key, parameter in policy.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, key=key: kept[name].__setitem__(key, p.grad.clone()))


VARIANTS = {
    "defaults": [],
    "scaled by the group": ["scale_rewards=group"],
    "scaled by the batch": ["scale_rewards=batch"],
    "GRPO's mean of means": ["loss_type=grpo"],
    "mean over the step's tokens": ["loss_type=bnpo"],
    "Dr. GRPO's constant": ["loss_type=dr_grpo"],
    "GSPO": ["importance_sampling_level=sequence", "loss_type=grpo"],
    "corrected KL": ["use_bias_correction_kl=true"],
    "corrected KL of GSPO": ["use_bias_correction_kl=true", "importance_sampling_level=sequence", "loss_type=grpo"],
    "entropy": ["entropy_coef=0.1", "loss_type=grpo"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_trl_makes_the_same_loss_and_gradient(tmp_path, variant):
    ours, theirs = tiny(), tiny()
    reference = tiny(5)  # another policy, so that the KL is not zero
    rollout = rollout_of(ours, 3)
    rewards = cubic_share(ours, rollout)

    config = load("finetune", ["algorithm=trl", "batch=32", "steps=1", f"output={tmp_path}", "algorithm.beta=0.3",
                               "algorithm.max_grad_norm=1e9", "device=cpu",
                               *(f"algorithm.{setting}" for setting in VARIANTS[variant])])
    collector = SimpleNamespace(
        draw=lambda policy, step: rollout,
        score=lambda policy, drawn: SimpleNamespace(rewards=rewards, scalars={}, breakdown=None))
    seen = {}
    trainer = make_trainer(config, theirs, collector, lambda step, experience, stats: seen.update(stats))
    trainer.ref_model.load_state_dict(reference.state_dict())
    gradients = {}
    keep_gradients(theirs, gradients, "theirs")
    trainer.train()

    learner = make(OmegaConf.merge(config.algorithm, {"minibatch": 32, "name": "grpo"}), ours, Accelerator(cpu=True))
    learner.reference.load_state_dict(reference.state_dict())
    keep_gradients(ours, gradients, "ours")
    stats = learner.update(rollout, rewards, np.random.default_rng(0))

    assert stats["policy/kl"] > 0.01
    assert float(seen["policy/kl"]) == pytest.approx(stats["policy/kl"], rel=1e-4)
    assert float(seen["policy/entropy"]) == pytest.approx(stats["policy/entropy"], rel=1e-4)
    if config.algorithm.loss_type in ("dapo", "bnpo"):  # else the KL in the loss is another mean than the one logged
        total = stats["loss/policy"] + 0.3 * stats["policy/kl"]
        assert float(seen["loss/policy"]) == pytest.approx(total, rel=1e-3)
    assert gradients["ours"].keys() == dict(ours.named_parameters()).keys()
    for name, gradient in gradients["ours"].items():
        assert gradient.norm() > 1e-6, name
        assert (gradients["theirs"][name] - gradient).norm() < 1e-5 * gradient.norm(), name


@pytest.mark.parametrize(("setting", "says"), [("trl.beta=0.1", "algorithm.beta"), ("trl.epsilom=0.1", "epsilom")])
def test_mistakes_in_its_options_are_told(tmp_path, setting, says):
    from rlgen.algorithms.trl import arguments

    config = load("finetune", ["algorithm=trl", "device=cpu", f"output={tmp_path}", f"algorithm.{setting}"])
    with pytest.raises(UserError, match=says):
        arguments(config, tiny())
