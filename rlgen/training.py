"""Everything about a run of reinforcement learning that its checkpoints keep, and how it goes back to one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlgen import checkpoint, processes
from rlgen.collapse import Guard
from rlgen.experience import Collector
from rlgen.stages import Stages
from rlgen.tracking import Run


class Training:
    """A learner, what its run has found so far, the guard, the stages, and how often it went back."""

    def __init__(self, config: Any, learner: Any, collector: Collector):
        self.config, self.learner, self.collector = config, learner, collector
        self.guard, self.stages = Guard(config.collapse), Stages(config)
        self.rollbacks = 0
        self.stopped = False

    def save(self, folder: Path) -> None:
        self.learner.save(folder)
        self.collector.prompts.save(folder / "policy")
        self.collector.save(folder)
        checkpoint.save_state(folder / "training", {
            "guard": self.guard.state(), "stages": self.stages.state(), "rollbacks": self.rollbacks,
            "stopped": self.stopped, "learning_rate": self.config.algorithm.learning_rate})

    def load(self, folder: Path, changed: bool) -> None:
        """Go on from what `save` wrote. changed: with other settings, so that a run that has stopped may try again."""
        self.learner.load(folder)
        self.collector.load(folder)
        state = checkpoint.load_state(folder / "training")
        self.guard.load_state(state["guard"])
        self.stages.load_state(state["stages"])
        self.rollbacks, self.stopped = state["rollbacks"], state["stopped"] and not changed
        # The optimiser's own rate has come back with it; what was set anew counts all the same.
        if state["learning_rate"] != self.config.algorithm.learning_rate:
            self.learner.scale_learning_rate(self.config.algorithm.learning_rate / state["learning_rate"])

    def checkpoint(self, step: int) -> None:
        """Have the first process write one; those that a collapse could send the run back to stay."""
        c = self.config
        if processes.index() == 0:
            checkpoint.save(c.output, step, self.save, keep=2 + c.collapse.window // c.checkpoint_every)
        processes.wait()

    def over(self, step: int) -> bool:
        return self.stopped or self.stages.over(step)

    def scalars(self) -> dict[str, float]:
        found = {"collapse/alarms": self.guard.alarms, "collapse/rollbacks": self.rollbacks}
        if len(self.stages.stages) > 1:
            found["stage/number"] = self.stages.index + 1
        return {name: float(value) for name, value in found.items()}

    def observe(self, step: int, scalars: Mapping[str, float], log: Run) -> bool:
        """Take in a step's scalars; whether the policy, or what is asked of it, is another than it was."""
        why = self.guard.observe(step, scalars)
        turned = bool(why) and self._collapsed(step, why, log)
        if step == 1 and (unmeasured := self.guard.unmeasured()):
            log.note(step, f"collapse: not measured in this run, so not watched: {', '.join(unmeasured)}")
        self.stages.observe(scalars)
        if not self.stopped and self.stages.over(step) and self.stages.advance(step):
            self.guard.expect_change(step)
            stage = self.stages.stage
            log.note(step, f"stage {stage.name} begins: reward {stage.config.reward.expression}")
            return True
        return turned

    def _collapsed(self, step: int, why: str, log: Run) -> bool:
        """Do what `collapse.action` says, and say so; whether the policy is another now.

        It and its optimiser go back to the last checkpoint from before the window in which the collapse was seen. The
        run goes on counting steps, and forgets nothing of what it has written and scored.
        """
        c = self.config.collapse
        if c.action == "ignore":
            log.note(step, f"collapse: {why}; nothing is done about it (collapse.action=ignore)")
            return False
        good = checkpoint.latest(self.config.output, step - c.window)
        assert good is not None, "step 0 has one, and later ones are kept for a window"
        self.learner.load(good)
        back = f"collapse: {why}; the policy goes back to step {checkpoint.step_of(good)}"
        if c.action == "rollback" and self.rollbacks < c.rollbacks:
            self.rollbacks += 1
            self.learner.scale_learning_rate(c.slower)
            log.note(step, f"{back}, with {c.slower:g} of its learning rate (rollback {self.rollbacks} of at most "
                           f"{c.rollbacks})")
        else:
            self.stopped = True
            log.note(step, f"{back}, and the run stops (rollbacks: {self.rollbacks})")
        return True
