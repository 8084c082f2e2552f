"""Ray workers that measure crystals: a queue of tasks, time limits, and replacing what is lost."""

from __future__ import annotations

import logging
import os
import resource
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.base import Reward
from rlgen.ray_session import RaySession
from rlgen.reward_measure import Measured, Payload, lost, measure
from rlgen.settings import RayConfig
from rlgen.types import Condition, UserError

logger = logging.getLogger(__name__)

#: Starts in a row that may fail before a worker's place stays empty for the rest of the batch.
_STARTS = 3
#: Seconds between two looks at whether Ray is still there and the pool still open.
_LOOK_S = 1.0


class Worker:
    """The Ray actor. A UserError is handed back as text: it ends the run whatever Ray makes of exceptions.

    memory_mb: what the process may allocate (RLIMIT_DATA); beyond it allocations fail in this worker, where otherwise
    the system would choose whom to kill. 0: no limit.
    """

    def __init__(self, rewards: Sequence[Reward], memory_mb: int):
        if memory_mb:
            resource.setrlimit(resource.RLIMIT_DATA, (memory_mb * 2**20, resource.getrlimit(resource.RLIMIT_DATA)[1]))
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
    """A worker's place. ref: None when it is idle; task: None while it starts; actor: None where none would start."""

    actor: Any = None
    ref: Any = None
    deadline: float = 0.0
    task: Task | None = None
    failed_starts: int = 0


Record = Callable[[Task, list[Measured]], None]


class Workers:
    """`count` actors that take tasks from a queue, wherever Ray finds room for them.

    One task at a time per worker: the round trip is small against a task, every time limit has one owner, and nothing
    but the running tasks' crystals is ever in memory twice. stop: when set, `run` ends with a RuntimeError.
    counters: `restarts`, of these `timeouts`, `failed_starts` and, where Ray's memory monitor killed, `out_of_memory`.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        count: int,
        settings: RayConfig,
        counters: Counter[str],
        stop: threading.Event,
    ):
        self._session = RaySession(settings, count, rewards)
        self._ray, self._settings = self._session.ray, settings
        self.counters, self._stop = counters, stop
        self._actor: Any = self._ray.remote(**self._session.options())(Worker)
        self._rewards = self._ray.put(list(rewards))
        self._slots = [self._spawn(0) for _ in range(count)]

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for slot in self._slots:
            if slot.actor is not None and not self._session.gone:
                self._ray.kill(slot.actor)
        self._slots = []
        self._session.close()

    def pids(self) -> list[int]:
        """Process ids of the workers; waits until they have started."""
        return self._ray.get([slot.actor.pid.remote() for slot in self._slots])

    def run(
        self,
        tasks: Sequence[Task],
        payloads: Mapping[int, Payload],
        conditions: Sequence[Condition],
        record: Record,
        meanwhile: Callable[[], None],
    ) -> None:
        """Measure all tasks, every crystal of each recorded once; `meanwhile` runs here after the first send."""
        queue = deque(tasks)
        # A place that was left empty is tried once more: machines come and go.
        self._slots = [slot if slot.actor is not None else self._spawn(_STARTS - 1) for slot in self._slots]
        try:
            self._feed(queue, payloads, conditions)
            meanwhile()
            while queue or any(slot.task for slot in self._slots):
                if self._stop.is_set():
                    raise RuntimeError("the reward pool is closed")
                self._feed(queue, payloads, conditions)
                self._collect(queue, record)
        except BaseException:
            # What still runs would answer into the next batch.
            for k, slot in enumerate(self._slots):
                if slot.task is not None and not (self._stop.is_set() or self._session.gone):
                    self._replace(k)
            raise

    def _feed(self, queue: deque[Task], payloads: Mapping[int, Payload], conditions: Sequence[Condition]) -> None:
        for slot in self._slots:
            if queue and slot.actor is not None and slot.ref is None:
                slot.task = task = queue.popleft()
                crystals = [payloads[i] for i in task.crystals], [dict(conditions[i]) for i in task.crystals]
                slot.ref = slot.actor.measure.remote(task.rewards, *crystals)
                slot.deadline = time.monotonic() + task.limit_s

    def _collect(self, queue: deque[Task], record: Record) -> None:
        """Wait for the next answer, death or time limit, and deal with it; or a second, and look after Ray."""
        busy = {slot.ref: k for k, slot in enumerate(self._slots) if slot.ref is not None}
        patience = min(self._slots[k].deadline for k in busy.values()) - time.monotonic()
        self._ray.wait(list(busy), num_returns=1, timeout=max(min(patience, _LOOK_S), 0.0))
        # All that have answered, and not only the first: an answer that lies here is never a timeout.
        done, _ = self._ray.wait(list(busy), num_returns=len(busy), timeout=0)
        for ref in done:
            slot = self._slots[busy[ref]]
            try:
                answer = self._ray.get(ref)
            except self._ray.exceptions.RayError as error:
                self._lost(busy[ref], self._why(error, starting=slot.task is None), queue, record)
                continue
            if isinstance(answer, str):
                slot.ref = slot.task = None
                raise UserError(answer)
            if slot.task is not None:
                results, counted = answer
                self.counters.update(counted)
                record(slot.task, results)
            slot.ref, slot.task, slot.failed_starts = None, None, 0
        now = time.monotonic()
        for k, slot in enumerate(self._slots):
            if slot.ref is not None and slot.ref not in done and now >= slot.deadline:
                self.counters["timeouts"] += 1
                limit = self._settings.start_timeout_s if slot.task is None else slot.task.limit_s
                if slot.task is None:
                    slot.failed_starts = _STARTS  # it has had its time
                self._lost(k, f"no answer within {limit:g} s", queue, record)
        if not done:
            self._session.check()

    def _why(self, error: Exception, starting: bool) -> str:
        """One line of an error of Ray's, which may be forty."""
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
        if isinstance(error, self._ray.exceptions.OutOfMemoryError):
            self.counters["out_of_memory"] += 1
            return "Ray ended its worker: the machine was out of memory"
        threw = isinstance(error, self._ray.exceptions.RayTaskError) or getattr(error, "actor_init_failed", False)
        if threw:
            return lines[-1]
        # Of a start that failed Ray's reason is all there is to go by; the first line says that an actor died.
        return f"one died ({lines[min(1, len(lines) - 1)][:300]})" if starting else "its worker died"

    def _lost(self, k: int, why: str, queue: deque[Task], record: Record) -> None:
        """Replace a worker and send what it held again, one crystal at a time; give up what cost a worker before."""
        self._session.check()
        task = self._slots[k].task
        self._replace(k)
        if task is None:
            self.counters["failed_starts"] += 1
            if all(slot.actor is None for slot in self._slots):
                raise UserError(f"reward workers do not start: {why}; {self._session.room()}")
            return
        logger.warning("a reward worker was lost over %d crystals: %s", len(task.crystals), why)
        if task.strikes:
            n = len(task.crystals)
            record(task, [lost(n, f"{why}, the second worker lost over it") for _ in task.rewards])
            return
        parts = [[i] for i in task.crystals] if task.divisible else [task.crystals]
        queue.extend(Task(task.rewards, part, task.limit_s, task.divisible, strikes=1) for part in parts)

    def _spawn(self, failed_starts: int) -> _Slot:
        actor = self._actor.remote(self._rewards, self._settings.memory_mb)
        deadline = time.monotonic() + self._settings.start_timeout_s
        return _Slot(actor, actor.warm_up.remote(), deadline, failed_starts=failed_starts)

    def _replace(self, k: int) -> None:
        """End a worker and start another in its place, unless none would start there."""
        slot = self._slots[k]
        self._ray.kill(slot.actor)
        failed_starts = slot.failed_starts + 1 if slot.task is None else 0
        if failed_starts >= _STARTS:
            self._slots[k] = _Slot()
        else:
            self.counters["restarts"] += 1
            self._slots[k] = self._spawn(failed_starts)
