"""Reinforcement learning of a pretrained policy: `python -m rlgen.finetune reward=novelty+stability`.

Each step asks for crystals with prompts drawn from the training data's joint distribution (space group, number of
atoms, an element), a group of samples to each prompt; Ray workers score them; a memory makes repeats earn less; the
learner compares the samples of a group with each other, so that nothing is gained by leaving the prompts; and the KL to
the pretrained policy keeps what it has learned. A guard watches for collapse. At the end fresh samples of both policies
are judged side by side.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from policies.model import CrystalPolicy
from rlgen import algorithms, checkpoint, processes, samples
from rlgen.asking import Asking
from rlgen.card import write_finetuned
from rlgen.comparison import compare
from rlgen.config import changes_of, device_of, main, plain, resumed
from rlgen.experience import Collector, make_rewards, resolve_energies, tell_scales
from rlgen.likelihood import nll, real_crystals
from rlgen.pipeline import Pipeline
from rlgen.progress import describe, log_step, progress_bar
from rlgen.reward_pool import RewardPool
from rlgen.settings import RayConfig
from rlgen.stages import Stages
from rlgen.tracking import Run
from rlgen.training import Training
from rlgen.types import UserError


def run(config: Any) -> None:
    changes, going_on = changes_of("finetune", config), config.resume is not None
    config, last = resumed(config)
    algorithms.check(config)
    if config.replay.fraction and config.replay.rows >= config.algorithm.group_size:
        raise UserError(f"replay.rows={config.replay.rows} must leave room in groups of {config.algorithm.group_size}")
    processes.join(config, cpu=device_of(config.device).type == "cpu")
    resolve_energies(config)
    output, started = Path(config.output), time.monotonic()
    policy, prompts = CrystalPolicy.load(config.policy, config.representation)
    tell_scales(config, policy)
    Asking(prompts, config).check(policy)  # a mistake is found before there is a run
    stages = Stages(config).stages
    rewards = [str(make_rewards(stage.config)[1]) for stage in stages]
    policy.config.sampling_temperature = stages[-1].config.algorithm.temperature
    first = 0 if last is None else checkpoint.step_of(last)
    with (processes.only_first_speaks(output) as folder,
          Run(folder, config, resume=first if going_on else None) as log):
        print(f"policy {config.policy} ({sum(p.numel() for p in policy.parameters()):,} parameters), reward "
              f"{', then '.join(rewards)}, energies of {config.energy}, {config.workers} workers, {config.steps} steps "
              f"of {config.batch} crystals")
        log.log_text(first, "settings", f"energies: **{config.energy}**, judged by **{config.judge}**\n\n"
                                        f"```yaml\n{OmegaConf.to_yaml(config)}```")
        if changes:
            log.note(first, f"the run goes on with other settings: {'; '.join(changes)}")
        collector = Collector(prompts, config)
        if config.algorithm.name == "trl":
            from rlgen.algorithms.trl import train as train_trl

            ray = RayConfig(**plain(config.ray))
            with RewardPool(*make_rewards(config), workers=config.workers, ray=ray) as pool:
                collector.enter(pool, config)
                trained = train_trl(config, policy, collector, log, last)
        else:
            trained = train(config, policy, collector, log, last, changed=bool(changes))
        if not processes.leave():
            return
        trained.save_pretrained(output / "policy")
        collector.prompts.save(output / "policy")
        judged = compare(config, trained, collector.prompts, log) if config.evaluate else {}
        write_finetuned(output / "policy", config, sum(p.numel() for p in trained.parameters()), judged)
        notes = "".join(f"{note}\n" for note in log.notes())
    report = f"report:      {output / 'report.html'}\n" if config.evaluate else ""
    print(f"\n{notes}in {(time.monotonic() - started) / 60:.1f} minutes\nrun:         {output}\npolicy:      "
          f"{output / 'policy'}\nsamples:     {output / samples.TABLE}\nTensorBoard: tensorboard --logdir {output}\n"
          f"{report}next:        python -m rlgen.sample policy={output / 'policy'} n=1000 output=my_crystals")


def train(config: Any, policy: CrystalPolicy, collector: Collector, log: Run, last: Path | None, *, changed: bool
          ) -> CrystalPolicy:
    """Sample, score, learn, log, stage by stage; and keep checkpoints that a run can go on from exactly."""
    from accelerate import Accelerator

    torch.manual_seed(config.seed)  # of what a learner adds to the policy
    learner = algorithms.make(config.algorithm, policy, Accelerator(cpu=device_of(config.device).type == "cpu"))
    training = Training(config, learner, collector)
    if last is None:
        training.checkpoint(0)
    else:
        training.load(last, changed)
    step = 0 if last is None else checkpoint.step_of(last)
    real = real_crystals(config.data, policy.representation) if config.real_every else None
    with Pipeline(collector, policy, config) as pipeline, progress_bar() as progress:
        task = progress.add_task("starting", total=training.stages.steps, completed=step)
        while not training.over(step):
            step, began = step + 1, time.monotonic()
            measured, stats = pipeline.take(step, training.stages)
            experience, updating = collector.remember(measured), time.monotonic()
            learner.begin(f"{collector.meaning}, temperature {experience.rollout.temperature}")
            stats |= learner.update(experience.rollout, experience.rewards,
                                    np.random.default_rng([config.seed, 4, step]))
            stats["time/update"] = time.monotonic() - updating
            if real is not None and (step - 1) % config.real_every == 0:
                stats["policy/nll_real"], _ = nll(policy, real)
            stats["time/step"] = time.monotonic() - began
            turned = training.observe(step, processes.from_first((experience.scalars | stats).copy), log)
            log_step(log, step, experience, stats | training.scalars())
            if turned:
                pipeline.drop()
            if turned or step % config.checkpoint_every == 0 or training.over(step):
                training.checkpoint(step)
            progress.update(task, completed=step, total=training.stages.steps, description=describe(experience))
    return policy


if __name__ == "__main__":
    main("finetune", run)
