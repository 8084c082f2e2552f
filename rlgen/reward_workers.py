"""Ray workers that measure crystals: a queue of tasks, time limits, and replacing what is lost."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewards.base import Reward
from rlgen.reward_measure import Measured, Payload, measure
from rlgen.types import Condition, UserError

logger = logging.getLogger(__name__)

#: One thread per worker: two spinning thread pools on the same cores stall each other for minutes.
_WORKER_ENV = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}


class Worker:
    """The Ray actor. A UserError is handed back as text: it ends the run whatever Ray makes of exceptions."""

    def __init__(self, rewards: Sequence[Reward]):
        self.rewards = list(rewards)

    def pid(self) -> int:
        return os.getpid()

    def warm_up(self) -> str | None:
        """Load what the rewards need, so that this does not count against the first crystals' time limit."""
        try:
            for reward in self.rewards:
                if hasattr(reward, "warm_up"):
                    reward.warm_up()
        except UserError as error:
            return str(error)
        return None

    def measure(
        self, which: list[int], payloads: list[Payload], conditions: list[Condition]
    ) -> tuple[list[Measured], Counter[str]] | str:
        try:
            return measure([self.rewards[k] for k in which], payloads, conditions)
        except UserError as error:
            return str(error)


@dataclass
class Task:
    """rewards: which, by index. crystals: which, by index into the batch. strikes: workers lost over it."""

    rewards: list[int]
    crystals: list[int]
    limit_s: float
    divisible: bool = True
    strikes: int = 0


@dataclass
class _Slot:
    """A worker and what it is doing: ref is None when idle, task is None while it starts."""

    actor: Any
    ref: Any
    deadline: float
    task: Task | None = None


class Workers:
    """`count` actors that take tasks from a queue. Starts Ray if it is not running, and ends it only then.

    One task at a time per worker: the round trip (0.8 ms) is small against a task, every time limit has one owner, and
    nothing but the running tasks' crystals is ever in memory twice. counters: restarts, timeouts.
    """

    def __init__(self, rewards: Sequence[Reward], count: int, start_timeout_s: float, counters: Counter[str]):
        # Ray reads these when it is imported. Without the second it hides the GPU from actors that reserve none; the
        # rewards' potentials share the device that this process sees.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self._ray = ray
        self.counters, self._start_timeout_s, self._start_failures = counters, start_timeout_s, 0
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            ray.init(
                num_cpus=count,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=100 * 1024**2,
            )
        # Ray tells workers the script's folder, not the rest of the path: a user's own reward would not be found.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        env = {**_WORKER_ENV, "PYTHONPATH": path, **{k: v for k, v in os.environ.items() if k.startswith("RLGEN_")}}
        # max_restarts=0: a worker's replacement is ours to count and to warm up. num_cpus=0 in a Ray that somebody else
        # started, where asking for more than is free would wait for ever.
        options: dict[str, Any] = {
            "num_cpus": 1 if self._owns_ray else 0,
            "max_restarts": 0,
            "runtime_env": {"env_vars": env},
        }
        self._actor: Any = ray.remote(**options)(Worker)
        self._rewards = ray.put(list(rewards))
        self._slots = [self._spawn() for _ in range(count)]

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for slot in self._slots:
            self._ray.kill(slot.actor)
        self._slots = []
        if self._owns_ray and self._ray.is_initialized():
            self._ray.shutdown()

    def pids(self) -> list[int]:
        """Process ids of the workers; waits until they have started."""
        return self._ray.get([slot.actor.pid.remote() for slot in self._slots])

    def run(
        self,
        tasks: Sequence[Task],
        payloads: Mapping[int, Payload],
        conditions: Sequence[Condition],
        record: Callable[[Task, list[Measured]], None],
        meanwhile: Callable[[], None],
    ) -> None:
        """Measure all tasks, every crystal of each recorded once; `meanwhile` runs here after the first send."""
        if not self._slots:
            raise RuntimeError("these workers are closed")
        queue = deque(tasks)
        try:
            self._feed(queue, payloads, conditions)
            meanwhile()
            while queue or any(slot.task for slot in self._slots):
                self._feed(queue, payloads, conditions)
                self._collect(queue, record)
        except BaseException:
            # What still runs would answer into the next batch.
            for k, slot in enumerate(self._slots):
                if slot.task is not None:
                    self._replace(k)
            raise

    def _feed(self, queue: deque[Task], payloads: Mapping[int, Payload], conditions: Sequence[Condition]) -> None:
        for slot in self._slots:
            if slot.ref is None and queue:
                slot.task = task = queue.popleft()
                crystals = [payloads[i] for i in task.crystals], [dict(conditions[i]) for i in task.crystals]
                slot.ref = slot.actor.measure.remote(task.rewards, *crystals)
                slot.deadline = time.monotonic() + task.limit_s

    def _collect(self, queue: deque[Task], record: Callable[[Task, list[Measured]], None]) -> None:
        """Wait for the next answer, death or time limit, and deal with it."""
        busy = {slot.ref: k for k, slot in enumerate(self._slots) if slot.ref is not None}
        patience = min(self._slots[k].deadline for k in busy.values()) - time.monotonic()
        self._ray.wait(list(busy), num_returns=1, timeout=max(patience, 0.0))
        # All that have answered, and not only the first: an answer that lies here is never a timeout.
        done, _ = self._ray.wait(list(busy), num_returns=len(busy), timeout=0)
        for ref in done:
            slot = self._slots[busy[ref]]
            try:
                answer = self._ray.get(ref)
            except self._ray.exceptions.RayActorError as error:
                self._lost(busy[ref], str(error), "its worker died twice", queue, record)
                continue
            if isinstance(answer, str):
                slot.ref = slot.task = None
                raise UserError(answer)
            if slot.task is None:
                self._start_failures = 0
            else:
                results, counted = answer
                self.counters.update(counted)
                record(slot.task, results)
            slot.ref = slot.task = None
        now = time.monotonic()
        for k, slot in enumerate(self._slots):
            if slot.ref is not None and slot.ref not in done and now >= slot.deadline:
                self.counters["timeouts"] += 1
                limit = self._start_timeout_s if slot.task is None else slot.task.limit_s
                why = f"no answer within {limit:g} s"
                self._lost(k, why, f"{why}, twice", queue, record)

    def _lost(self, k: int, error: str, reason: str, queue: deque[Task], record: Callable) -> None:
        """Replace a worker and send what it held again, one crystal at a time; give up what cost a worker before."""
        task = self._slots[k].task
        self._replace(k)
        if task is None:
            self._start_failures += 1
            if self._start_failures >= 3:
                raise UserError(f"reward workers do not start: {error}")
            return
        logger.warning("a reward worker was lost over %d crystals: %s", len(task.crystals), error.strip()[:200])
        if task.strikes:
            n = len(task.crystals)
            record(task, [(np.full(n, np.nan), [reason] * n, np.ones(n, dtype=bool)) for _ in task.rewards])
            return
        parts = [[i] for i in task.crystals] if task.divisible else [task.crystals]
        queue.extend(Task(task.rewards, part, task.limit_s, task.divisible, strikes=1) for part in parts)

    def _spawn(self) -> _Slot:
        actor = self._actor.remote(self._rewards)
        return _Slot(actor, actor.warm_up.remote(), time.monotonic() + self._start_timeout_s)

    def _replace(self, k: int) -> None:
        self.counters["restarts"] += 1
        self._ray.kill(self._slots[k].actor)
        self._slots[k] = self._spawn()
