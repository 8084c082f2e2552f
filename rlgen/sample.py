"""Crystals from a policy: `python -m rlgen.sample n=1000 output=my_crystals`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from pymatgen.core import Structure

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from rlgen import samples
from rlgen.asking import combinations
from rlgen.config import device_of, main, plain
from rlgen.drawing import answering, drawn, guidance
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
    rate = len(crystals) / (time.monotonic() - started)
    print(f"{len(crystals)} samples, {len(crystals) - failed} crystals, {rate:.0f} per second\n"
          f"{config.output}: {samples.TABLE}, {config.formats}\n"
          f"next: python -m rlgen.evaluate input={config.output}")


def _drawn(config: Any, policy: CrystalPolicy, prompts: PromptTable, generator: torch.Generator
           ) -> tuple[list[Structure | CrystalError], dict[str, list]]:
    """n crystals for every combination of what is asked, with prompts of the data for the rest, with their
    log-probabilities."""
    rng = np.random.default_rng(config.seed)
    asked = combinations(plain(config.condition))
    policy.guide(guidance(config.guidance, policy, asked))
    conditions = [condition for one in asked for condition in answering(policy, prompts, one, config.n, rng)]
    crystals, logprobs = drawn(policy, conditions, generator, batch=config.batch, temperature=config.temperature)
    return crystals, {"condition": conditions, "logprob": logprobs,
                      "asked": [one for one in asked for _ in range(config.n)]}


def _completed(config: Any, policy: CrystalPolicy, generator: torch.Generator
               ) -> tuple[list[Structure | CrystalError], dict[str, list]]:
    """n completions of the crystal in a file, and what was masked in it."""
    policy.guide(guidance(config.guidance, policy, [plain(config.condition)]))
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
