"""A hull from a data set: `python -m rlgen.hull energy=chgnet data=my_crystals.csv`."""

from __future__ import annotations

from typing import Any

from rlgen import energies
from rlgen.config import main, plain
from rlgen.hull import built, shipped_scales
from rlgen.hull.build import build
from rlgen.settings import RayConfig


def run(config: Any) -> None:
    energy = energies.resolve(config.energy)
    ray = RayConfig(**plain(config.ray))
    path = build(energy, config.data, config.splits, config.output, config.workers, ray, config.checkpoint_every)
    scale = energies.load_potential(energy).scale
    found = path == built(scale) and scale not in shipped_scales()
    print(f"taken for {energy} where no other is named" if found else
          f"use it with: rlgen.finetune reward.stability.hull={path}, rlgen.evaluate hull={path}")


if __name__ == "__main__":
    main("hull", run)
