"""Overlap: what is drawn when, how stale it is, and that scoring goes on meanwhile, one batch at a time."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from rlgen import pipeline
from rlgen.config import load
from rlgen.pipeline import Pipeline
from rlgen.stages import Stages


class Collector:
    """Draws and scores numbers, and writes down what it did."""

    def __init__(self, seconds=0.0, fails=()):
        self.seconds, self.fails = seconds, fails
        self.drawn, self.threads, self.under_way, self.entered = [], [], 0, []

    def enter(self, pool, config):
        self.entered.append(config.reward.expression)

    def draw(self, policy, step):
        self.drawn.append(step)
        return SimpleNamespace(step=step)

    def measure(self, policy, rollout):
        assert self.under_way == 0, "two batches at a time"
        self.under_way += 1
        self.threads.append(threading.current_thread().name)
        time.sleep(self.seconds)
        self.under_way -= 1
        if rollout.step in self.fails:
            raise ZeroDivisionError(rollout.step)
        return rollout


@pytest.fixture(autouse=True)
def no_rewards(monkeypatch):
    """The pool is not what is tested."""
    class Pool:
        def __init__(self, *_, **__):
            self.open = True

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.open = False

    monkeypatch.setattr(pipeline, "RewardPool", Pool)


def run(collector, depth, steps=7, checkpoint_every=4, learn=lambda step: None):
    """(step, staleness, steps drawn by then) of each batch."""
    config = load("finetune", [f"pipeline={depth}", f"steps={steps}", f"checkpoint_every={checkpoint_every}",
                               "reward=validity"])  # fmt: skip
    stages, found = Stages(config), []
    with Pipeline(collector, None, config) as batches:
        for step in range(1, steps + 1):
            rollout, scalars = batches.take(step, stages)
            found.append((rollout.step, int(scalars["policy/staleness"]), collector.drawn[-1]))
            learn(step)
    return found


def test_without_a_pipeline_every_batch_is_of_this_policy_and_in_this_thread():
    collector = Collector()
    assert run(collector, 0) == [(step, 0, step) for step in range(1, 8)]
    assert set(collector.threads) == {"MainThread"}


def test_batches_are_drawn_ahead_but_not_past_a_checkpoint_or_the_end():
    assert run(Collector(), 1) == [(1, 0, 2), (2, 1, 3), (3, 1, 4), (4, 1, 4), (5, 0, 6), (6, 1, 7), (7, 1, 7)]
    assert run(Collector(), 3) == [(1, 0, 4), (2, 1, 4), (3, 2, 4), (4, 3, 4), (5, 0, 7), (6, 1, 7), (7, 2, 7)]
    assert max(stale for _, stale, _ in run(Collector(), 2, steps=20, checkpoint_every=100)) == 2


def test_scoring_overlaps_with_learning():
    began = time.monotonic()
    run(Collector(0.1), 0, learn=lambda step: time.sleep(0.1))
    alone, began = time.monotonic() - began, time.monotonic()
    run(Collector(0.1), 1, checkpoint_every=100, learn=lambda step: time.sleep(0.1))
    assert time.monotonic() - began < 0.85 * alone  # 0.8 s instead of 1.4


def test_a_failure_in_the_thread_ends_the_run():
    with pytest.raises(ZeroDivisionError, match="3"):
        run(Collector(fails=(3,)), 1)


def test_what_was_drawn_ahead_can_be_dropped():
    collector, config = Collector(0.02), load("finetune", ["pipeline=3", "steps=9", "reward=validity"])
    with Pipeline(collector, None, config) as batches:
        stages = Stages(config)
        assert batches.take(1, stages)[0].step == 1
        batches.drop()
        assert collector.under_way == 0
        rollout, scalars = batches.take(2, stages)
        assert rollout.step == 2 and scalars["policy/staleness"] == 0
    assert collector.drawn == [1, 2, 3, 4, 2, 3, 4, 5]


def test_a_stage_has_its_own_pool():
    collector = Collector()
    config = load("finetune", ["stages=[{reward: validity, steps: 2}, {reward: uniqueness, steps: 2}]", "pipeline=2"])
    stages = Stages(config)
    with Pipeline(collector, None, config) as batches:
        for step in range(1, 5):
            batches.take(step, stages)
            if stages.over(step):
                stages.advance(step)
                batches.drop()
    assert collector.entered == ["validity", "uniqueness"] and collector.drawn == [1, 2, 3, 4]
