"""How rewards become updates of the policy: GRPO, RLOO, PPO and GVPO in a loop of our own, and TRL's GRPOTrainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlgen.types import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from policies.model import CrystalPolicy
    from rlgen.algorithms.learner import Learner


def check(config: Any) -> None:
    """UserError for settings of fine-tuning (`batch` and `algorithm`) that cannot be meant."""
    from rlgen.algorithms.losses import LEVELS, LOSS_TYPES, SCALES

    c = config.algorithm
    for key, known in (("scale_rewards", SCALES), ("loss_type", LOSS_TYPES), ("importance_sampling_level", LEVELS)):
        if c[key] not in known:
            raise UserError(f"algorithm.{key}={c[key]}; known: {', '.join(known)}")
    if c.name != "ppo" and c.group_size < 2:
        raise UserError(f"algorithm.group_size={c.group_size}: must be at least 2, as {c.name} compares the samples of "
                        "a group with each other")
    if c.name == "ppo" and c.scale_rewards == "group":
        raise UserError("algorithm.scale_rewards=group: ppo compares no groups; known for it: batch, none")
    if c.name == "gvpo" and any(value == 0 for value in (c.beta, *c.beta_by_kind.values())):
        raise UserError("algorithm.beta and beta_by_kind must be above 0: gvpo fits rewards by beta · log(policy / "
                        "pretrained)")
    if config.batch % c.group_size:
        raise UserError(f"batch={config.batch} is no multiple of algorithm.group_size={c.group_size}")
    if c.target_kl is not None and not (c.beta or c.beta_by_kind):
        raise UserError(f"algorithm.target_kl={c.target_kl} steers the weight of the KL, but algorithm.beta is 0")
    if c.name == "trl" and (config.stages or config.pipeline):
        raise UserError("algorithm=trl takes neither stages= nor pipeline=; the others do")


def make(config: Any, policy: CrystalPolicy, accelerator: Accelerator) -> Learner:
    """The learner that `algorithm.name` names, from the settings below `algorithm`."""
    from rlgen.algorithms.adapter import AdapterGVPO
    from rlgen.algorithms.grpo import GRPO, RLOO
    from rlgen.algorithms.gvpo import GVPO
    from rlgen.algorithms.ppo import PPO

    learners: dict[str, type[Learner]] = {"grpo": GRPO, "rloo": RLOO, "ppo": PPO,
                                          "gvpo": AdapterGVPO if config.adapter else GVPO}
    return learners[config.name](policy, config, accelerator)
