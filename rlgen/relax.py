"""Relax crystals, ours or another tool's: `python -m rlgen.relax input=my_crystals output=relaxed`."""

from __future__ import annotations

import time
from typing import Any, get_args

from rlgen import energies, samples
from rlgen.config import main
from rlgen.formats import chosen
from rlgen.relaxing import Mode, Relaxed, relax_samples, summary
from rlgen.types import UserError


def run(config: Any) -> None:
    if config.mode not in get_args(Mode):
        raise UserError(f"mode={config.mode}: known are {', '.join(get_args(Mode))}")
    chosen(config.formats)  # a mistake is found before any work is done
    energy = energies.resolve(config.energy)
    read = samples.read(config.input)
    started = time.monotonic()
    reward = Relaxed(energy, config.mode, config.symmetry, config.fmax, config.steps, config.seconds)
    crystals, columns = relax_samples(read.crystals, reward, workers=config.workers)
    samples.write(config.output, crystals, {"name": read.names, **columns}, config.formats)
    seconds = time.monotonic() - started
    print(f"{summary(columns)}\n{seconds:.0f} s, {len(crystals) / seconds:.2f} per second\n"
          f"{config.output}: {samples.TABLE} with energies and outcomes, {config.formats}\n"
          f"next: python -m rlgen.evaluate input={config.output}")


if __name__ == "__main__":
    main("relax", run)
