"""Batches for a learner, each scored in the background while later ones are drawn and earlier ones are learnt from.

With `depth` 0 nothing overlaps and the learner gets what the policy of this moment drew. With depth n up to n batches
are drawn ahead, so that a batch is from at most n updates before the one it is learnt in; its log-probabilities are
those of the policy that drew it, which is what an importance ratio needs. What is drawn when depends on steps alone,
never on how long anything took.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from policies.model import CrystalPolicy
from policies.sampler import Rollout
from rlgen import processes
from rlgen.config import plain
from rlgen.experience import Collector, Measured, make_rewards
from rlgen.reward_pool import RewardPool
from rlgen.settings import RayConfig
from rlgen.stages import Stage, Stages


@dataclass(frozen=True)
class _Batch:
    """Of a step, drawn by the policy that had learnt from all steps before `drawn_at`."""

    step: int
    drawn_at: int
    rollout: Rollout
    future: Future[Measured] | None  # None: not begun, to be scored when it is taken


class Pipeline:
    """Holds the reward pool of the run's stage. Used as a context manager."""

    def __init__(self, collector: Collector, policy: CrystalPolicy, config: Any):
        self.collector, self.policy, self.config = collector, policy, config
        self._waiting: deque[_Batch] = deque()
        self._stage: Stage | None = None
        self._open = ExitStack()  # the pool, and the thread that has it score
        self._thread: ThreadPoolExecutor | None = None

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *error: object) -> None:
        self.drop()
        self._open.close()

    def take(self, step: int, stages: Stages) -> tuple[Measured, dict[str, float]]:
        """The batch of a step, with scalars.

        Nothing is drawn yet for steps after the next checkpoint or of the next stage, so that none is under way then.
        """
        if stages.stage is not self._stage:
            self._enter(stages.stage)
        started = time.monotonic()
        last = min(step + self.config.pipeline, step + -step % self.config.checkpoint_every, stages.last_step)
        for later in range(self._waiting[-1].step + 1 if self._waiting else step, last + 1):
            rollout = self.collector.draw(self.policy, later)
            future = None if self._thread is None else self._thread.submit(self.collector.measure, self.policy, rollout)
            self._waiting.append(_Batch(later, step, rollout, future))
        drawn = time.monotonic()
        batch = self._waiting.popleft()
        measured = batch.future.result() if batch.future else self.collector.measure(self.policy, batch.rollout)
        return measured, {"policy/staleness": float(step - batch.drawn_at), "time/sample": drawn - started,
                          "time/wait": time.monotonic() - drawn}

    def drop(self) -> None:
        """Forget what was drawn ahead: the policy, or what is asked of it, is another now."""
        for batch in self._waiting:
            if batch.future is not None and not batch.future.cancel():
                batch.future.exception()  # begun: the pool, which scores one batch at a time, is free after it
        self._waiting.clear()

    def _enter(self, stage: Stage) -> None:
        self._open.close()  # the last stage's
        pool = None
        if processes.index() == 0:
            rewards, expression = make_rewards(stage.config)
            ray = RayConfig(**plain(self.config.ray))
            pool = self._open.enter_context(RewardPool(rewards, expression, workers=self.config.workers, ray=ray))
        self.collector.enter(pool, stage.config)
        if self.config.pipeline:
            self._thread = self._open.enter_context(ThreadPoolExecutor(1, thread_name_prefix="rewards"))
        self._stage = stage
