"""Scores crystals under several rewards, in this process or in Ray workers that may die.

Measuring, mapping to [0, 1] and combining are three steps: raw -> score -> total. Invalid crystals, crystals that could
not be measured and crystals that score low stay three different things.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from pymatgen.core import Structure

from rewards.base import Reward
from rewards.expression import Expression, parse
from rewards.validity import Validity
from rlgen import counters
from rlgen.reward_measure import Measured, Payload, measure, pack
from rlgen.reward_workers import Task, Workers
from rlgen.settings import RayConfig
from rlgen.types import Condition, CrystalError, RewardBreakdown, UserError

#: What the pool itself counts; a breakdown has them even when they are 0.
_ALWAYS = ("restarts", "timeouts", "failures")


class RewardPool:
    """`score` a batch of crystals. Results do not depend on the number of workers, nor on who finishes first.

    rewards: what to measure; those that the expression does not name are measured and recorded all the same.
    expression: how scores make the total, as text or parsed. workers: Ray actors; 0 measures in this process, without
    Ray and without protection against hanging. ray: where the workers run, crystals per task, limits of time and
    memory. A worker that dies or hangs is replaced and its crystals are sent again one by one; a crystal that costs a
    second worker has failed.

    `score` may be called from another thread than the one that made the pool. Calls wait for each other; `close` makes
    one that runs end with a RuntimeError, at the latest after the task of this process that it is in.

    A reward may offer `warm_up()` (called once per worker, before any time limit on crystals runs),
    `measure_with_reasons(structures, conditions) -> (raw, reasons)`, or `measure_with_columns`, which gives besides
    those a dict of columns (B,) to keep with the samples, and, if it looks at the whole batch, `in_worker = True` to
    be run in a worker rather than in this process.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        expression: Expression | str,
        *,
        workers: int = 2,
        ray: RayConfig | None = None,
    ):
        self.rewards = list(rewards)
        self.names = tuple(r.name for r in self.rewards)
        if len(set(self.names)) < len(self.names):
            raise UserError(f"a reward occurs twice: {', '.join(self.names)}")
        column = {**{_dotted(r): k for k, r in enumerate(self.rewards)}, **{n: k for k, n in enumerate(self.names)}}
        self.expression = parse(expression, column) if isinstance(expression, str) else expression
        absent = [n for n in self.expression.names if n not in column]
        if absent:
            raise UserError(f"reward={self.expression} names {', '.join(absent)}; given are {', '.join(self.names)}")
        self._columns = [column[n] for n in self.expression.names]
        self._settings = ray or RayConfig()
        # Validity is checked here and first, whether or not it is a reward: no other reward sees an invalid crystal.
        self._gate = next((r for r in self.rewards if isinstance(r, Validity)), Validity())
        self.counters: Counter[str] = Counter(dict.fromkeys(_ALWAYS, 0))
        self._proven: set[int] = set()
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._workers = (
            Workers(self.rewards, workers, self._settings, self.counters, self._closed) if workers > 0 else None
        )

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def score(
        self, crystals: Sequence[Structure | CrystalError], conditions: Sequence[Condition] | None = None
    ) -> RewardBreakdown:
        """Measure, transform, combine. conditions: (B,) what was asked of each crystal; None: nothing."""
        with self._lock:
            return self._score(crystals, conditions)

    def _score(
        self, crystals: Sequence[Structure | CrystalError], conditions: Sequence[Condition] | None
    ) -> RewardBreakdown:
        count = len(crystals)
        conditions = [{}] * count if conditions is None else list(conditions)
        if len(conditions) != count:
            raise ValueError(f"{count} crystals and {len(conditions)} conditions")
        before = Counter(self.counters)
        counters.drain()  # what others counted in this process is not of this batch
        reasons = [str(c) if isinstance(c, CrystalError) else self._gate.check(c) for c in crystals]
        payloads = {i: pack(c) for i, c in enumerate(crystals) if not reasons[i] and isinstance(c, Structure)}
        valid = list(payloads)
        raw = np.full((count, len(self.rewards)), np.nan)
        status = np.where([bool(r) for r in reasons], "invalid", "ok").astype("<U7")
        problems: dict[int, dict[int, str]] = {i: {} for i in valid}
        raised = np.zeros((count, len(self.rewards)), dtype=bool)
        extra: dict[str, np.ndarray] = {}

        def record(task: Task, results: list[Measured]) -> None:
            for k, (values, why, threw, columns) in zip(task.rewards, results, strict=True):
                raw[task.crystals, k], raised[task.crystals, k] = values, threw
                for name, column in columns.items():
                    extra.setdefault(name, np.full(count, np.nan))[task.crystals] = column
                for i, text in zip(task.crystals, why, strict=True):
                    if text:
                        problems[i][k] = text

        here, tasks = self._plan(valid, payloads)
        self._run(here, tasks, payloads, conditions, record)
        self._refuse_if_all_raised(valid, raised, problems)
        for k, reward in enumerate(self.rewards):
            if isinstance(reward, Validity):
                raw[:, k] = status == "ok"
        for i, why in problems.items():
            if why:
                status[i] = "failed"
                reasons[i] = "; ".join(f"{self.names[k]}: {why[k]}" for k in sorted(why))
        self.counters["failures"] += int((status == "failed").sum())
        score = self._transform(raw)
        total = np.where(status == "invalid", 0.0, self.expression.combine(score[:, self._columns]))
        self.counters.update(counters.drain())  # what the check of validity counted
        # Of other events, those of this batch only: a resumed run logs what the uninterrupted one does.
        new = {name: n - before[name] for name, n in self.counters.items() if name in _ALWAYS or n != before[name]}
        return RewardBreakdown(self.names, raw, score, total, status, reasons, extra, new)

    def _plan(self, valid: list[int], payloads: dict[int, Payload]) -> tuple[list[Task], list[Task]]:
        """What is measured in this process, and what by workers (also in this process if there are none)."""
        if not valid:
            return [], []
        here: list[Task] = []
        tasks: list[Task] = []
        each = [k for k, r in enumerate(self.rewards) if r.per_sample and not isinstance(r, Validity)]
        for k, reward in enumerate(self.rewards):
            if not reward.per_sample:
                limit = max(self._settings.timeout_s, 0.5 * len(valid))
                in_worker = getattr(reward, "in_worker", False)
                (tasks if in_worker else here).append(Task([k], valid, limit, divisible=False))
        # Largest crystals first: no worker is left with the longest task at the end, and chunks are of a size.
        order = sorted(valid, key=lambda i: (-len(payloads[i][1]), i)) if each else []
        chunk = self._settings.chunk
        for start in range(0, len(order), chunk):
            tasks.append(Task(each, order[start : start + chunk], self._settings.timeout_s))
        return here, tasks

    def _transform(self, raw: np.ndarray) -> np.ndarray:
        """Scores (B, K) of raw values; NaN stays NaN."""
        score = np.full(raw.shape, np.nan)
        for k, reward in enumerate(self.rewards):
            known = ~np.isnan(raw[:, k])
            if known.any():
                values = np.asarray(reward.transform(raw[known, k]), dtype=float)
                if not ((values >= -1e-9) & (values <= 1 + 1e-9)).all():
                    raise UserError(f"reward {self.names[k]!r} gave a score outside [0, 1]: its transform must not")
                score[known, k] = np.clip(values, 0.0, 1.0)
        return score

    def _refuse_if_all_raised(self, valid: list[int], raised: np.ndarray, problems: dict[int, dict[int, str]]) -> None:
        """A reward that has never worked and raises on a whole batch is broken: better to stop than to learn from 0."""
        if len(valid) < 2:
            return
        for k in range(len(self.rewards)):
            if k not in self._proven and raised[valid, k].all():
                why = problems[valid[0]][k]
                raise UserError(f"reward {self.names[k]!r} failed on all {len(valid)} crystals: {why}")
            self._proven.add(k)

    def _run(
        self,
        here: list[Task],
        tasks: list[Task],
        payloads: dict[int, Payload],
        conditions: list[Condition],
        record: Callable[[Task, list[Measured]], None],
    ) -> None:
        """Let the workers measure `tasks` and this process, meanwhile, `here`."""

        def locally(todo: list[Task]) -> None:
            for task in todo:
                if self._closed.is_set():
                    raise RuntimeError("the reward pool is closed")
                rewards = [self.rewards[k] for k in task.rewards]
                crystals = [payloads[i] for i in task.crystals], [conditions[i] for i in task.crystals]
                results, counted = measure(rewards, *crystals)
                self.counters.update(counted)
                record(task, results)

        if self._workers is None:
            locally(here + tasks)
        else:
            self._workers.run(tasks, payloads, conditions, record, meanwhile=lambda: locally(here))

    def close(self) -> None:
        """End the workers, and Ray if this pool started or joined it."""
        self._closed.set()
        with self._lock:
            if self._workers is not None:
                self._workers.close()


def _dotted(reward: Reward) -> str:
    """How an expression may call a user's own reward."""
    return f"{type(reward).__module__}:{type(reward).__qualname__}"
