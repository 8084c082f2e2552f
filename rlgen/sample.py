"""Crystals from a policy: `python -m rlgen.sample n=1000 output=my_crystals`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from pymatgen.core import Structure
from rich.progress import track

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from policies.sampler import decode, sample
from rlgen import samples
from rlgen.config import device_of, main, plain
from rlgen.formats import chosen
from rlgen.infill import infill
from rlgen.types import CrystalError, UserError


def run(config: Any) -> None:
    chosen(config.formats)  # a mistake is found before any work is done
    policy, prompts = CrystalPolicy.load(config.policy, config.representation)
    policy.to(device_of(config.device))  # type: ignore[arg-type]
    generator = torch.Generator(policy.device).manual_seed(config.seed)
    started = time.monotonic()
    if (config.infill is None) != (config.mask is None):
        raise UserError("infill=FILE and mask=… go together: a crystal, and the part of it that is to be written anew")
    if config.infill is not None:
        crystals, columns = _completed(config, policy, generator)
    else:
        crystals, columns = _drawn(config, policy, prompts, generator)
    samples.write(config.output, crystals, columns, config.formats)
    failed = sum(isinstance(c, CrystalError) for c in crystals)
    rate = config.n / (time.monotonic() - started)
    print(f"{config.n} samples, {config.n - failed} crystals, {rate:.0f} per second\n"
          f"{config.output}: {samples.TABLE}, {config.formats}\n"
          f"next: python -m rlgen.evaluate input={config.output}")


def _drawn(config: Any, policy: CrystalPolicy, prompts: PromptTable, generator: torch.Generator
           ) -> tuple[list[Structure | CrystalError], dict[str, list]]:
    """n crystals that answer what is asked, and for the rest prompts of the data, with their log-probabilities."""
    rng = np.random.default_rng(config.seed)
    asked, representation = plain(config.condition), policy.representation
    if asked:
        representation.start(torch.tensor([representation.prompt(asked)]), [asked])  # says what cannot be met
        conditions = prompts.answering(asked, config.n, rng, representation.possible)
    else:
        conditions = prompts.sample(config.n, rng)
    crystals: list[Structure | CrystalError] = []
    kept: list[float] = []
    for start in track(range(0, config.n, config.batch), "sampling"):
        rollout = sample(policy, conditions[start : start + config.batch], generator, temperature=config.temperature)
        crystals += decode(policy, rollout)
        kept += rollout.logprobs.sum(1).tolist()
    return crystals, {"condition": conditions, "logprob": kept}


def _completed(config: Any, policy: CrystalPolicy, generator: torch.Generator
               ) -> tuple[list[Structure | CrystalError], dict[str, list]]:
    """n completions of the crystal in a file, and what was masked in it."""
    found = samples.read(config.infill).crystals
    if len(found) != 1 or isinstance(found[0], CrystalError):
        raise UserError(f"infill={config.infill} must hold one crystal: {found[0] if found else 'it holds none'}")
    try:
        crystals = infill(policy, found[0], config.mask, config.n, generator, temperature=config.temperature,
                          draws=config.draws, condition=plain(config.condition))
    except CrystalError as error:
        raise UserError(f"infill={config.infill}: {error}") from error
    return crystals, {"mask": [config.mask] * config.n}


if __name__ == "__main__":
    main("sample", run)
