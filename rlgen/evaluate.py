"""Judge crystals, ours or another tool's: `python -m rlgen.evaluate input=my_crystals`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from rlgen import energies, samples
from rlgen.config import main, plain
from rlgen.evaluation import as_dict, as_markdown, evaluate, table
from rlgen.hull import Hull
from rlgen.report.page import Page
from rlgen.settings import MetricsConfig, RayConfig
from rlgen.tracking import METRICS
from rlgen.types import UserError

PAGE = "report.html"


def run(config: Any) -> None:
    _run(config)  # a mistake is found before any work is done
    energy = energies.resolve(config.energy)
    energies.must_relax(energy)
    known = "shipped:all" if config.data == "shipped" else config.data
    crystals, properties = {}, {}
    for path in filter(None, (config.compare, config.input)):
        read = samples.read(path)
        crystals[str(path)] = read.crystals
        if read.columns is not None:
            properties[str(path)] = read.columns
    found = evaluate(crystals, energy=energy, hull=config.hull, reference=known, steps=config.relax_steps,
                     real=config.real, settings=MetricsConfig(**plain(config.metrics)), workers=config.workers,
                     ray=RayConfig(**plain(config.ray)), seed=config.seed)
    Console().print(table(found))
    if config.output:
        output = Path(config.output)
        output.mkdir(parents=True, exist_ok=True)
        (output / "table.md").write_text(as_markdown(found) + "\n", encoding="utf-8")
        (output / "table.json").write_text(json.dumps(as_dict(found), indent=1) + "\n", encoding="utf-8")
        for i, (name, judged) in enumerate(found.items()):
            judged.samples.assign(source=name).to_parquet(output / f"judged_{i}.parquet", index=False)
        hull = Hull.load(found[str(config.input)].notes["scale"], config.hull)
        page = Page("Evaluation", found, crystals, properties, hull, OmegaConf.to_yaml(config), _run(config))
        page.write(output / PAGE)
        print(f"written: {output / PAGE}, table.md, table.json, and every sample's verdict in judged_*.parquet")


def _run(config: Any) -> Path | None:
    """The run whose learning curves are shown: the one named, or the input if it is one."""
    folder = Path(config.run or config.input)
    if (folder / METRICS).exists():
        return folder
    if config.run:
        raise UserError(f"run={config.run}: no run there ({METRICS} is missing)")
    return None


if __name__ == "__main__":
    main("evaluate", run)
