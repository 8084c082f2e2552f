"""Fine-tunes the shipped policy once for each arm and seed, and shows what came of it, side by side.

`python benchmarks/finetuning.py arms=diversity steps=90 output=runs/diversity`: what holds diversity, each part alone
and all together. `python benchmarks/finetuning.py arms=algorithms seeds=0,1,2 steps=32 fresh=256 judges=m3gnet
output=runs/algorithms`: GRPO, RLOO and PPO. `arms=best seeds=0,1,2 steps=96 fresh=2000 judges=m3gnet,tensornet`: what
reaches furthest. `arms=tradeoff steps=32 fresh=512`: S.U.N. against diversity, with `tradeoff_*.svg`. `arms=` takes
these names, and those of single arms, separated by commas.

The first table has the first and the last `window` steps of each arm (a sixth of the run, by default), mean over the
seeds; `curves.svg` their rewards. With `fresh=`, so many new crystals of every policy and of the one before, answering
the same prompts, are judged by each of `judges`, and the other tables are of these. All other key=value go to every
`rlgen.finetune`, e.g. `energy=m3gnet workers=0 reward.stability.mode=relax`. Whatever is finished is kept in `output`;
called again, it goes on from there. Each judge relaxes the crystals as they are written. The policy may collapse:
nothing is done about it.
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
from judged import draw, markdown, over_seeds, read, table

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
#: Name -> settings. Without a value net the rate can be larger (docs/results.md).
ALGORITHMS: dict[str, list[str]] = {
    "GRPO": ["algorithm=grpo", "algorithm.learning_rate=5e-4"],
    "RLOO": ["algorithm=rloo", "algorithm.learning_rate=5e-4"],
    "PPO": ["algorithm=ppo"],
}
#: All by GRPO. "default": prompts, a memory of crystals, off_prompt. What starts with "no" lacks a part of it.
DIVERSITY: dict[str, list[str]] = {name: ["algorithm=grpo", *settings] for name, settings in {
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
}.items()}
#: What reaches furthest (docs/results.md), and how far with how much of the diversity that is asked for.
BEST = ["reward=novelty*(stability+formation)", "reward.stability.width=1", "reward.stability.max_force=inf",
        "algorithm=gvpo", "batch=512"]
TRADEOFF = {f"beta {beta}": [*BEST, f"algorithm.beta={beta}"] for beta in (0.0175, 0.035, 0.07, 0.15)} | {
    "prompts keep 90 %": [*BEST, "prompts.diversity=0.9"]}
SETS = {"diversity": DIVERSITY, "algorithms": ALGORITHMS, "tradeoff": TRADEOFF}
ARMS = DIVERSITY | ALGORITHMS | TRADEOFF | {"best": BEST}
SHARES = ("S.U.N.", "unique", "top group")
DIGITS = {"reward": 3, "KL": 3, "S.U.N. found": 0, "their prototypes": 0}


def finetune(settings: Sequence[str], run: Path) -> None:
    """Run, or go on with, one arm."""
    arguments = [f"resume={run}"]
    if checkpoint.latest(run) is None:
        shutil.rmtree(run, ignore_errors=True)
        arguments = [*settings, f"output={run}"]
    call("rlgen.finetune", *arguments)


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
    shown["NLL of real crystals"] = next((line["policy/nll_real"] for line in reversed(metrics)
                                          if "policy/nll_real" in line), None)  # fmt: skip
    shown["s/step"] = float(np.mean([line["time/step"] for line in metrics]))
    return shown


def judge(policy: str, judges: Sequence[str], n: int, workers: str, folder: Path) -> dict[str, dict[str, float]]:
    """Every judge's figures of n fresh crystals of a policy; the same prompts and seed for all policies."""
    found, fresh = {}, folder / "fresh"
    for energy in judges:
        if not (folder / energy / "table.json").exists():
            if not fresh.exists():
                call("rlgen.sample", f"policy={policy}", f"n={n}", "seed=7", "formats=", f"output={fresh}")
            call("rlgen.evaluate", f"input={fresh}", f"energy={energy}", "real=null", f"workers={workers}",
                 f"output={folder / energy}")  # fmt: skip
        found[energy] = read(folder / energy)
    return found


def call(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-m", module, *arguments], check=True, stdout=subprocess.DEVNULL)


def curves(runs: dict[str, list[Path]], window: int, file: Path) -> None:
    """Rewards by scored crystals: each seed's running mean, thin, and that of all, thick."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    colours = colormaps["tab10" if len(runs) <= 10 else "tab20"].colors
    for k, (name, folders) in enumerate(runs.items()):
        seeds = []
        for run in folders:
            samples = pd.read_parquet(run / "samples.parquet", columns=["step", "total", "discount"])
            earned = (samples["total"] * samples["discount"]).groupby(samples["step"]).mean()
            seeds.append(earned.rolling(window, min_periods=1).mean())
            crystals = np.arange(1, len(earned) + 1) * len(samples) / len(earned)
            axes.plot(crystals, seeds[-1], color=colours[k], linewidth=0.6, alpha=0.5)
        axes.plot(crystals, np.mean(seeds, axis=0), color=colours[k], linewidth=2, label=name)
    axes.set(xlabel="crystals scored", ylabel=f"mean reward, running mean of {window} steps")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    figure.savefig(file)


def main(output: str = "runs/finetuning", arms: str = "diversity", seeds: str = "0", window: str = "",
         fresh: str = "0", judges: str = "m3gnet", **others: str) -> None:
    chosen = [arm for name in arms.split(",") for arm in SETS.get(name, [name])]
    if unknown := [name for name in chosen if name not in ARMS]:
        raise SystemExit(f"unknown arms: {', '.join(unknown)}\nknown: {', '.join([*SETS, *ARMS])}")
    common = {"reward": "novelty+stability", "evaluate": "0", "collapse.action": "ignore"} | others
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    runs = {(name, seed): [f"{key}={value}" for key, value in (
        common | dict(pair.split("=", 1) for pair in ARMS[name]) | {"seed": seed}).items()]
        for seed in seeds.split(",") for name in chosen}
    # Loaded here so that a mistake is told before anything runs.
    steps = max(int(config.load("finetune", settings).steps) for settings in runs.values())
    width = int(window or max(1, steps // 6))
    workers, asked = others.get("workers", "2"), judges.split(",") if int(fresh) else []
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    judged: dict[str, list[dict[str, dict[str, float]]]] = {"pretrained": []} | {name: [] for name in chosen}
    folders: dict[str, list[Path]] = {name: [] for name in chosen}
    for (name, seed), settings in runs.items():
        run = folder / f"{name.replace(' ', '_')}_{seed}"
        kept = run.with_suffix(".json")
        state = json.loads(kept.read_text()) if kept.exists() else {"settings": settings}
        if state["settings"] != settings:
            raise SystemExit(f"{kept} was made with other settings: {' '.join(state['settings'])}\n"
                             "choose another output=, or remove it and its run")
        kept.write_text(json.dumps(state, indent=1))
        if "row" not in state:
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            finetune(settings, run)
            state["row"] = row(run, width)
            kept.write_text(json.dumps(state, indent=1))
        rows[name].append(state["row"])
        folders[name].append(run)
        judged[name].append(judge(str(run / "policy"), asked, int(fresh), workers, folder / f"judged_{run.name}"))
    judged["pretrained"].append(judge(others.get("policy", "shipped"), asked, int(fresh), workers, folder / "before"))
    columns = list(next(iter(rows.values()))[0])
    print(markdown("", columns, {
        name: [over_seeds([one[column] for one in found], column in SHARES, DIGITS.get(column, 1))
               for column in columns] for name, found in rows.items()}))  # fmt: skip
    for energy in asked:
        of_judge = {name: [one[energy] for one in found] for name, found in judged.items()}
        print("\n" + table(f"{fresh} fresh crystals each, judged by {energy}", of_judge))
        draw(of_judge, folder / f"tradeoff_{energy}.svg")
    curves(folders, width, folder / "curves.svg")


if __name__ == "__main__":
    main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))
