"""Reinforcement learning of a pretrained policy: `python -m rlgen.finetune reward=novelty+stability`.

Each step asks for crystals with prompts drawn from the training data's joint distribution (space group, number of
atoms, an element), a group of samples to each prompt; Ray workers score them; a memory makes repeats earn less; GRPO
compares the samples of a group with each other, so that nothing is gained by leaving the prompts; and the KL to the
pretrained policy keeps what it has learned. At the end fresh samples of both policies are judged side by side.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from rich.console import Console

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from policies.sampler import decode, sample
from rlgen import algorithms, checkpoint, samples, tracking
from rlgen.config import device_of, main, resumed
from rlgen.evaluation import as_dict, as_markdown, evaluate, table
from rlgen.experience import Collector, make_rewards, resolve_energies
from rlgen.progress import describe, log_step, progress_bar
from rlgen.reward_pool import RewardPool
from rlgen.tracking import Run
from rlgen.types import UserError


def run(config: Any) -> None:
    config, last = resumed(config)
    if config.batch % config.algorithm.group_size:
        raise UserError(f"batch={config.batch} is no multiple of algorithm.group_size={config.algorithm.group_size}")
    if config.algorithm.scale_rewards not in ("group", "none"):
        raise UserError(f"algorithm.scale_rewards={config.algorithm.scale_rewards}; known: group, none")
    resolve_energies(config)
    output, started = Path(config.output), time.monotonic()
    policy, prompts = CrystalPolicy.load(config.policy, config.representation)
    rewards, expression = make_rewards(config)
    print(f"policy {config.policy} ({sum(p.numel() for p in policy.parameters()):,} parameters), reward {expression}, "
          f"energies of {config.energy}, {config.workers} workers, {config.steps} steps of {config.batch} crystals")
    with Run(output, config, resume=None if last is None else checkpoint.step_of(last)) as log:
        log.log_text(0, "settings", f"energies: **{config.energy}**, judged by **{config.judge}**\n\n"
                                    f"```yaml\n{OmegaConf.to_yaml(config)}```")
        with RewardPool(rewards, expression, workers=config.workers) as pool:
            collector = Collector(prompts, pool, config)
            if config.algorithm.name == "trl":
                from rlgen.algorithms.trl import train as train_trl

                trained = train_trl(config, policy, collector, log, last)
            else:
                trained = train(config, policy, collector, log, last)
        trained.save_pretrained(output / "policy")
        prompts.save(output / "policy")
        if config.evaluate:
            compare(config, trained, prompts, log)
    print(f"\nin {(time.monotonic() - started) / 60:.1f} minutes\nrun:         {output}\npolicy:      "
          f"{output / 'policy'}\nsamples:     {output / samples.TABLE}\nTensorBoard: tensorboard --logdir {output}\n"
          f"next:        python -m rlgen.sample policy={output / 'policy'} n=1000 output=my_crystals")


def train(config: Any, policy: CrystalPolicy, collector: Collector, log: Run, last: Path | None) -> CrystalPolicy:
    """Sample, score, learn, log; and keep checkpoints that a run can go on from exactly."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device_of(config.device).type == "cpu")
    torch.manual_seed(config.seed)  # of what a learner adds to the policy
    learner = algorithms.make(config.algorithm, policy, accelerator)
    first = 0
    if last is not None:
        first = checkpoint.step_of(last)
        learner.load(last)
        collector.load(last)

    def save(folder: Path) -> None:
        learner.save(folder)
        collector.prompts.save(folder / "policy")
        collector.save(folder)

    with progress_bar() as progress:
        task = progress.add_task("starting", total=config.steps, completed=first)
        for step in range(first + 1, config.steps + 1):
            t0 = time.monotonic()
            rollout = collector.draw(policy, step)
            t1 = time.monotonic()
            experience = collector.score(policy, rollout)
            t2 = time.monotonic()
            stats = learner.update(rollout, experience.rewards, np.random.default_rng([config.seed, 4, step]))
            times = {"time/sample": t1 - t0, "time/update": time.monotonic() - t2}
            log_step(log, step, experience, stats | times)
            if step % config.checkpoint_every == 0 or step == config.steps:
                checkpoint.save(config.output, step, save)
            progress.update(task, completed=step, description=describe(experience))
    return policy


def compare(config: Any, trained: CrystalPolicy, prompts: PromptTable, log: Run) -> None:
    """Judge fresh samples of the pretrained and the fine-tuned policy, drawn for the same fresh prompts."""
    rng = np.random.default_rng([config.seed, 5])
    conditions = prompts.sample(config.evaluate, rng)
    seed = int(rng.integers(2**62))
    pretrained, _ = CrystalPolicy.load(config.policy)
    pretrained.to(trained.device)  # type: ignore[arg-type]
    known = "shipped:all" if config.data == "shipped" else config.data
    found = {}
    for name, policy in (("pretrained", pretrained), ("fine-tuned", trained)):
        print(f"judging {config.evaluate} fresh crystals of the {name} policy")
        rollout = sample(policy, conditions, torch.Generator(policy.device).manual_seed(seed))
        crystals = decode(policy, rollout)
        found[name] = evaluate(crystals, energy=config.judge, reference=known, steps=config.relax_steps,
                               workers=config.workers, seed=config.seed)
        columns = {c: found[name].samples[c].to_numpy() for c in found[name].samples if c != "formula"}
        samples.write(Path(config.output) / f"samples_{name}", crystals, {"condition": conditions} | columns)
    report = as_markdown(found)
    log.log_text(config.steps, "before_after", report)
    log.log_figure(config.steps, "energy_above_hull", tracking.energy_histogram(
        *(found[name].samples["e_above_hull"].to_numpy(float) for name in ("pretrained", "fine-tuned"))))
    (Path(config.output) / "before_after.md").write_text(report + "\n", encoding="utf-8")
    (Path(config.output) / "before_after.json").write_text(
        json.dumps(as_dict(found), indent=1) + "\n",
        encoding="utf-8")
    Console().print(table(found))


if __name__ == "__main__":
    main("finetune", run)
