"""What a collapse sends a run back to, and what a resumed run keeps and takes anew."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rlgen import checkpoint
from rlgen.config import load
from rlgen.tracking import Run
from rlgen.training import Training


class Learner:
    """Learns one number a step; keeps its learning rate with it, as an optimiser does."""

    def __init__(self, rate):
        self.learnt, self.rate = 0, rate

    def save(self, folder):
        (folder / "policy").mkdir()
        checkpoint.save_state(folder / "learner", [self.learnt, self.rate])

    def load(self, folder):
        self.learnt, self.rate = checkpoint.load_state(folder / "learner")

    def scale_learning_rate(self, factor):
        self.rate *= factor


def training_of(tmp_path, *arguments):
    config = load("finetune", [f"output={tmp_path}", "steps=40", "checkpoint_every=4", "collapse.window=3",
                               "algorithm.learning_rate=0.1", "collapse.above.policy/kl=0.3", *arguments])  # fmt: skip
    nothing = SimpleNamespace(save=lambda folder: None, load=lambda folder: None,
                              prompts=SimpleNamespace(save=lambda folder: None))
    return Training(config, Learner(config.algorithm.learning_rate), nothing)


def work(training, log, kl_of, first=1, last=40):
    """Steps as the loop takes them; returns those after which the policy was another."""
    turns = []
    for step in range(first, last + 1):
        training.learner.learnt = step
        turned = training.observe(step, {"policy/kl": kl_of(step)}, log)
        if turned:
            turns.append((step, training.learner.learnt, training.learner.rate))
        if turned or step % 4 == 0:
            training.checkpoint(step)
        if training.over(step):
            break
    return turns


def test_a_run_goes_back_to_before_the_window_and_then_stops(tmp_path):
    training = training_of(tmp_path)
    training.checkpoint(0)
    with Run(tmp_path, training.config, tensorboard=False) as log:
        turns = work(training, log, lambda step: 1.0 if step >= 13 else 0.0)
        notes = log.notes()
    # Two of three at step 14: back to the last checkpoint up to step 11, that of 8. Then whenever a window is full: 17
    # (to 14, which holds what was learnt at 8), and at 20 to 17.
    assert turns == [(14, 8, 0.05), (17, 8, 0.025), (20, 8, 0.025)]
    assert training.stopped and training.over(20) and training.scalars() == {
        "collapse/alarms": 3.0, "collapse/rollbacks": 2.0}
    assert "goes back to step 8, with 0.5 of its learning rate (rollback 1 of at most 2)" in notes[1]
    assert notes[-1].startswith("step 20: collapse: policy/kl is 1, above 0.3; the policy goes back to step 17")


def test_the_first_steps_are_a_place_to_go_back_to(tmp_path):
    training = training_of(tmp_path, "checkpoint_every=20", "collapse.rollbacks=1")
    training.checkpoint(0)
    with Run(tmp_path, training.config, tensorboard=False) as log:
        assert work(training, log, lambda step: 1.0, last=5) == [(3, 0, 0.05)]


@pytest.mark.parametrize(("action", "stops", "turns"), [("stop", True, [(9, 4, 0.1)]), ("ignore", False, [])])
def test_other_actions(tmp_path, action, stops, turns):
    training = training_of(tmp_path, f"collapse.action={action}")
    training.checkpoint(0)
    with Run(tmp_path, training.config, tensorboard=False) as log:
        assert work(training, log, lambda step: float(step >= 8), last=9) == turns
        assert training.stopped is stops and training.guard.alarms == 1 and len(log.notes()) == 2


def test_a_resumed_run_goes_on_from_what_was_kept(tmp_path):
    def kl(step):
        return 1.0 if step >= 13 else 0.0

    training = training_of(tmp_path)
    training.checkpoint(0)
    with Run(tmp_path, training.config, tensorboard=False) as log:
        work(training, log, kl, last=15)
    again = training_of(tmp_path)
    last = checkpoint.latest(tmp_path)
    again.load(last, changed=False)
    assert checkpoint.step_of(last) == 14 and again.rollbacks == 1
    assert (again.learner.learnt, again.learner.rate) == (8, 0.05)
    with Run(tmp_path, again.config, resume=14, tensorboard=False) as log:
        assert work(again, log, kl, first=15) == [(17, 8, 0.025), (20, 8, 0.025)]
    finished = training_of(tmp_path)
    finished.load(checkpoint.latest(tmp_path), changed=False)
    assert finished.over(20)
    finished.load(checkpoint.latest(tmp_path), changed=True)
    assert not finished.over(20)


def test_a_learning_rate_given_anew_counts_and_rollbacks_still_do(tmp_path):
    training = training_of(tmp_path)
    training.learner.scale_learning_rate(0.5)
    training.checkpoint(4)
    other = training_of(tmp_path, "algorithm.learning_rate=0.2")
    other.load(checkpoint.latest(tmp_path), changed=True)
    assert other.learner.rate == pytest.approx(0.1)


def test_stages_change_and_are_noted(tmp_path):
    stages = "[{reward: validity, steps: 2}, {reward: novelty, steps: 3}]"
    config = load("finetune", [f"output={tmp_path}", f"stages={stages}"])
    training = Training(config, Learner(1.0), None)
    with Run(tmp_path, config, tensorboard=False) as log:
        turned = [training.observe(step, {}, log) for step in (1, 2, 3, 4, 5)]
        assert turned == [False, True, False, False, False] and training.over(5) and not training.over(4)
        assert "step 2: stage 2 begins: reward novelty" in log.notes()
    assert training.scalars()["stage/number"] == 2
