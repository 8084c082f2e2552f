"""Crystals from a policy: `python -m rlgen.sample n=1000 output=my_crystals`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from rich.progress import track

from policies.model import CrystalPolicy
from policies.sampler import decode, sample
from rlgen import samples
from rlgen.config import device_of, main, plain
from rlgen.types import CrystalError


def run(config: Any) -> None:
    policy, prompts = CrystalPolicy.load(config.policy, config.representation)
    policy.to(device_of(config.device))  # type: ignore[arg-type]
    rng = np.random.default_rng(config.seed)
    asked, representation = plain(config.condition), policy.representation
    if asked:
        representation.start(torch.tensor([representation.prompt(asked)]), [asked])  # says what cannot be met
        conditions = prompts.answering(asked, config.n, rng, representation.possible)
    else:
        conditions = prompts.sample(config.n, rng)
    generator = torch.Generator(policy.device).manual_seed(config.seed)
    started, crystals, kept = time.monotonic(), [], []
    for start in track(range(0, config.n, config.batch), "sampling"):
        part = conditions[start : start + config.batch]
        rollout = sample(policy, part, generator, temperature=config.temperature)
        crystals += decode(policy, rollout)
        kept += rollout.logprobs.sum(1).tolist()
    samples.write(config.output, crystals, {"condition": conditions, "logprob": kept})
    failed = sum(isinstance(c, CrystalError) for c in crystals)
    rate = config.n / (time.monotonic() - started)
    print(f"{config.n} samples, {config.n - failed} crystals, {rate:.0f} per second\n"
          f"{config.output}: cif/, samples.extxyz, samples.parquet\n"
          f"next: python -m rlgen.evaluate input={config.output}")


if __name__ == "__main__":
    main("sample", run)
