"""Rewards: one small file each, the expression that combines them, and the contract they keep.

`REWARDS` is the only table; nothing heavy is imported before a reward is made.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

from rlgen.types import UserError

if TYPE_CHECKING:
    from rewards.base import Reward

#: name in an expression -> where its class lives.
REWARDS: dict[str, str] = {
    "validity": "rewards.validity:Validity",
    "novelty": "rewards.novelty:Novelty",
    "uniqueness": "rewards.uniqueness:Uniqueness",
    "stability": "rewards.stability:Stability",
    "formation": "rewards.formation:Formation",
    "spread": "rewards.spread:Spread",
    "condition": "rewards.condition:ConditionMatch",
}

__all__ = ["REWARDS", "Reward", "make"]


def make(name: str, **params: Any) -> Reward:
    """The reward `name` of the table, or a user's own as "my.module:MyReward", with its parameters.

    UserError: unknown name (the known ones are listed), a parameter that it does not have, or a class that does not
    keep the contract in `rewards/base.py`.
    """
    target = REWARDS.get(name, name)
    if ":" not in target:
        known = ", ".join(sorted(REWARDS))
        raise UserError(f"unknown reward {name!r}; known are {known}, or your own as my.module:MyReward")
    module_name, _, class_name = target.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"reward {name!r} cannot be imported: {error}") from error
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise UserError(f"reward {name!r} is no dataclass; see rewards/base.py for what a reward is")
    missing = [a for a in ("name", "unit", "per_sample", "measure", "transform") if not hasattr(cls, a)]
    if missing:
        raise UserError(f"reward {name!r} has no {', '.join(missing)}; see rewards/base.py for what a reward is")
    fields = [f.name for f in dataclasses.fields(cls) if f.init]
    unknown = sorted(set(params) - set(fields))
    if unknown:
        have = f"it has {', '.join(fields)}" if fields else "it has none"
        raise UserError(f"reward {name!r} has no parameter {', '.join(unknown)}; {have}")
    reward: Any = cls(**params)
    return reward


def __getattr__(name: str) -> Any:
    # The contract imports pymatgen, which takes a second: only for those who ask for it.
    if name == "Reward":
        from rewards.base import Reward

        return Reward
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
