"""The end of a fine-tuning run: fresh samples of the policy before and after, judged side by side, and a page of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from policies.sampler import decode, sample
from rlgen import samples, tracking
from rlgen.asking import Asking
from rlgen.config import plain
from rlgen.evaluation import Evaluation, as_dict, as_markdown, evaluate, table
from rlgen.hull import Hull
from rlgen.report.page import Page
from rlgen.settings import RayConfig
from rlgen.tracking import Run


def compare(config: Any, trained: CrystalPolicy, prompts: PromptTable, log: Run) -> dict[str, Evaluation]:
    """Judge fresh samples of the pretrained and the fine-tuned policy, each for its own prompts: the same ones, unless
    the run has learnt which to ask."""
    pretrained, before = CrystalPolicy.load(config.policy)
    pretrained.to(trained.device)  # type: ignore[arg-type]
    known = "shipped:all" if config.data == "shipped" else config.data
    ray = RayConfig(**plain(config.ray))
    ray = replace(ray, chunk=max(1, ray.chunk // 2), timeout_s=8 * ray.timeout_s)  # relaxing takes much longer
    told, drawn = {}, {}
    for name, policy, asked in (("pretrained", pretrained, before), ("fine-tuned", trained, prompts)):
        rng, asking = np.random.default_rng([config.seed, 5]), Asking(asked, config)
        told[name] = asking.draw(config.evaluate, rng, trained) if asking.asked else asked.sample(
            config.evaluate, rng, keep={key: asking.keep[key] for key in asked.properties})
        seed = int(rng.integers(2**62))
        rollout = sample(policy, told[name], torch.Generator(policy.device).manual_seed(seed))
        drawn[name] = decode(policy, rollout)
    found = evaluate(drawn, energy=config.judge, reference=known, steps=config.relax_steps, workers=config.workers,
                     ray=ray, seed=config.seed)
    for name, judged in found.items():
        columns = {c: judged.samples[c].to_numpy() for c in judged.samples if c != "formula"}
        samples.write(Path(config.output) / f"samples_{name}", drawn[name], {"condition": told[name]} | columns)
    report = as_markdown(found)
    log.log_text(config.steps, "before_after", report)
    log.log_figure(config.steps, "energy_above_hull", tracking.energy_histogram(
        *(found[name].samples["e_above_hull"].to_numpy(float) for name in ("pretrained", "fine-tuned"))))
    (Path(config.output) / "before_after.md").write_text(report + "\n", encoding="utf-8")
    (Path(config.output) / "before_after.json").write_text(
        json.dumps(as_dict(found), indent=1) + "\n",
        encoding="utf-8")
    hull = Hull.load(found["fine-tuned"].notes["scale"])
    run = Path(config.output)
    Page("Before and after fine-tuning", found, drawn, hull=hull, run=run).write(run / "report.html")
    Console().print(table(found))
    return found
