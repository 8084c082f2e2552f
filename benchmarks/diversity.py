"""What holds diversity, each alone and all together: `python benchmarks/diversity.py steps=90 output=runs/diversity`.

Fine-tunes the shipped policy once for each arm, one after the other, and prints a table of the first and the last
`window` steps of each (a sixth of the run, by default). `arms=` restricts it and `seeds=0,1,2` repeats it; all other
key=value go to every `rlgen.finetune`, e.g. `energy=chgnet workers=2 evaluate=256`, with which the table also has what
the judge says in the end. Whatever is finished is kept in `output`; called again, it goes on from there. The policy
may collapse: nothing is done about it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlgen import checkpoint, config
from rlgen.metrics import exp_entropy
from rlgen.protostructure import read_label

OPEN = ["prompts.space_group=0", "prompts.n_atoms=0", "prompts.element=0"]
FORGETFUL = ["memory.crystal.shape=none"]
PROTOTYPES = ["memory.prototype.shape=step"]
FORMULAS = ["memory.formula.shape=inverse"]
SPREAD = ["reward=novelty+stability+spread"]
REPLAY = ["replay.fraction=0.25"]
ENTROPY = ["algorithm.entropy_coef=0.003"]
#: Name -> settings. "default": prompts, a memory of crystals, off_prompt. What starts with "no" lacks a part of it.
ARMS: dict[str, list[str]] = {
    "default": [],
    "nothing": [*OPEN, *FORGETFUL],
    "no prompts": OPEN,
    "no memory": FORGETFUL,
    "no off_prompt": ["off_prompt=1"],
    "prototype memory alone": [*OPEN, *FORGETFUL, *PROTOTYPES],
    "spread alone": [*OPEN, *FORGETFUL, *SPREAD],
    "by formula": FORMULAS,
    "by prototype": PROTOTYPES,
    "by prototype inversely": ["memory.prototype.shape=inverse"],
    "spread": SPREAD,
    "replay": REPLAY,
    "flatter prompts": ["prompts.power=0.5"],
    "entropy": ENTROPY,
    "KL of elements": ["algorithm.beta_by_kind.element=0.1"],
    "together": [*FORMULAS, *PROTOTYPES, *SPREAD, *REPLAY, *ENTROPY],
}


def finetune(settings: Sequence[str], run: Path) -> None:
    """Run, or go on with, one arm."""
    arguments = [f"resume={run}"]
    if checkpoint.latest(run) is None:
        shutil.rmtree(run, ignore_errors=True)
        arguments = [*settings, f"output={run}"]
    subprocess.run([sys.executable, "-W", "ignore", "-m", "rlgen.finetune", *arguments], check=True,
                   stdout=subprocess.DEVNULL)


def figures(samples: pd.DataFrame) -> dict[str, float]:
    """Of the samples of some steps: shares of all, diversity of those that have a label."""
    labels = [label if isinstance(label, str) else None for label in samples["label"]]
    found = [read for label in labels if label is not None and (read := read_label(label)) is not None]
    first = ~samples["label"].duplicated() & samples["label"].notna()
    groups = pd.Series([one.space_group for one in found], dtype=int)
    measured = {"novelty_raw", "stability_raw"} <= set(samples)
    sun = first & (samples["novelty_raw"] == 1) & (samples["stability_raw"] <= 0.1) if measured else first * np.nan
    return {
        "reward": float((samples["total"] * samples["discount"]).mean()),
        "S.U.N.": float(sun.mean()),
        "unique": float(first.mean()),
        "space groups": exp_entropy(groups),
        "top group": float(groups.value_counts().max() / len(samples)) if len(groups) else 0.0,
        "prototypes": exp_entropy(one.prototype for one in found),
        "elements": exp_entropy(element for one in found for element in one.elements),
        "atoms": float(np.mean([one.n_atoms for one in found])) if found else np.nan,
    }


def row(run: Path, window: int) -> dict[str, Any]:
    """What a finished run shows: [first, last] window of each figure, the KL, and what was found in all."""
    samples = pd.read_parquet(run / "samples.parquet")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = len(metrics)
    first, last = (figures(samples[chosen]) for chosen in
                   (samples["step"] <= window, samples["step"] > steps - window))
    shown: dict[str, Any] = {name: [first[name], last[name]] for name in first}
    kl = [line.get("policy/kl", np.nan) for line in metrics]
    shown["KL"] = [float(np.mean(kl[:window])), float(np.mean(kl[-window:]))]
    shown["S.U.N. found"] = metrics[-1]["memory/sun"]
    shown["their prototypes"] = metrics[-1]["memory/sun_prototypes"]
    if (run / "before_after.json").exists():
        judged = json.loads((run / "before_after.json").read_text())
        shown["judged S.U.N."] = [judged[name]["summary"]["sun"]["value"] for name in ("pretrained", "fine-tuned")]
    return shown


def show(name: str, value: Any) -> str:
    """A cell: first → last, shares in percent."""
    if isinstance(value, list):
        return " → ".join(show(name, one) for one in value)
    if value is None or np.isnan(value):
        return "–"
    if name in ("S.U.N.", "unique", "top group", "judged S.U.N."):
        return f"{value:.1%}"
    digits = {"reward": 3, "KL": 3, "S.U.N. found": 0, "their prototypes": 0}.get(name, 1)
    return f"{value:.{digits}f}"


def main(output: str = "runs/diversity", arms: str = ",".join(ARMS), seeds: str = "0",
         window: str = "", **others: str) -> None:
    chosen = arms.split(",")
    if unknown := [name for name in chosen if name not in ARMS]:
        raise SystemExit(f"unknown arms: {', '.join(unknown)}\nknown: {', '.join(ARMS)}")
    common = {"reward": "novelty+stability", "evaluate": "0", "collapse.action": "ignore"} | others
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    runs = {(name, seed): [f"{key}={value}" for key, value in (
        common | dict(pair.split("=", 1) for pair in ARMS[name]) | {"seed": seed}).items()]
        for seed in seeds.split(",") for name in chosen}
    # Loaded here so that a mistake is told before anything runs.
    steps = max(int(config.load("finetune", settings).steps) for settings in runs.values())
    rows = {}
    for (name, seed), settings in runs.items():
        slug = f"{name.replace(' ', '_')}_{seed}"
        kept = folder / f"{slug}.json"
        state = json.loads(kept.read_text()) if kept.exists() else {"settings": settings}
        if state["settings"] != settings:
            raise SystemExit(f"{kept} was made with other settings: {' '.join(state['settings'])}\n"
                             "choose another output=, or remove it and its run")
        kept.write_text(json.dumps(state, indent=1))
        if "row" not in state:
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            finetune(settings, folder / slug)
            state["row"] = row(folder / slug, int(window or max(1, steps // 6)))
            kept.write_text(json.dumps(state, indent=1))
        rows[f"{name}, seed {seed}" if "," in seeds else name] = state["row"]
    columns = list(next(iter(rows.values())))
    print("| | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    for name, shown in rows.items():
        print(f"| {name} | " + " | ".join(show(column, shown.get(column)) for column in columns) + " |")


if __name__ == "__main__":
    main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))
