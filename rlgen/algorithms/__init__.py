"""How rewards become updates of the policy: `make` gives a learner of ours; `trl` is TRL's GRPOTrainer."""

from __future__ import annotations

from typing import Any

from rlgen.types import UserError


def make(config: Any, policy: Any, accelerator: Any) -> Any:
    """The learner that `algorithm.name` names, around a policy that it moves to the accelerator's device.

    It offers `policy`, `update(rollout, rewards, rng) -> scalars`, `save(folder)`, `load(folder)` and
    `scale_learning_rate(factor)`. UserError for an unknown name.
    """
    from rlgen.algorithms.grpo import GRPO

    learners = {"grpo": GRPO}
    if config.name not in learners:
        raise UserError(f"unknown algorithm.name={config.name}; known: {', '.join(learners)}, trl")
    return learners[config.name](policy, config, accelerator)
