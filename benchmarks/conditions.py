"""What is asked of a policy against what comes: `python benchmarks/conditions.py policy=runs/asked/policy n=40`.

For every property that the policy was trained on, or for those in `ask=density,density+hhi_production+space_group` (a
plus: together), asks for `targets` values, `n` crystals each, with every guidance weight of `weights`; 0 is a policy
that is not told the property, only the space group, size and element of crystals that have it. A single property is
asked for at evenly spaced quantiles of the training data, from the 2nd to the 98th per cent; several together as
crystals of the data have them. Prints a table and writes it (JSON) with a plot into `output`.

mae: mean distance of what was measured from what was asked, over valid crystals, in the property's unit. hit: within
5 % of the range of its scale, or the right category; hit, valid and unique are shares of all samples.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from pymatgen.core import Structure

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from rewards.validity import Validity
from rlgen.conditions import CRYSTAL_SYSTEMS, Transform
from rlgen.drawing import answering, drawn
from rlgen.predictors import predictor_of
from rlgen.properties import PROPERTIES
from rlgen.protostructure import MIRRORED
from rlgen.reference import duplicate_groups
from rlgen.types import CrystalError, UserError

#: Share of the range of a scale within which a number counts as hit.
CLOSE = 0.05


def targets_of(names: list[str], prompts: PromptTable, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """What is asked for: values of one property, or joint values of crystals of the data for several."""
    if len(names) == 1 and names[0] in prompts.properties and names[0] != "crystal_system":
        known = prompts.properties[names[0]]
        return [{names[0]: float(v)} for v in np.nanquantile(known, np.linspace(0.02, 0.98, count))]
    if names == ["crystal_system"]:
        return [{"crystal_system": name} for name in CRYSTAL_SYSTEMS]
    found: list[dict[str, Any]] = []
    for i in rng.permutation(len(prompts)).tolist():
        row = prompts.row(i, rng)
        if all(name in row for name in names):
            found.append({name: row[name] for name in names})
            if len(found) == count:
                return found
    raise UserError(f"no {count} crystals of the data have all of {', '.join(names)}")


def measured(name: str, crystals: list[Structure]) -> list[Any]:
    """Values of a property, in the form in which it is asked for."""
    values, _ = predictor_of(name).predict(crystals)
    if name == "crystal_system":
        return [CRYSTAL_SYSTEMS[int(v)] if np.isfinite(v) else None for v in values]
    return [float(v) for v in values]


def same(name: str, asked: Any, found: Any) -> bool:
    if name == "space_group":
        return np.isfinite(found) and MIRRORED.get(int(asked), int(asked)) == MIRRORED.get(int(found), int(found))
    return asked == found


def draw(policy: CrystalPolicy, prompts: PromptTable, targets: list[dict[str, Any]], n: int, weight: float, seed: int
         ) -> list[Structure | CrystalError]:
    """n crystals for each target, the same prompts for every weight."""
    rng = np.random.default_rng(seed)
    conditions = [condition for target in targets for condition in answering(policy, prompts, target, n, rng)]
    policy.guide(weight)
    return drawn(policy, conditions, torch.Generator(policy.device).manual_seed(seed), batch=256)[0]


def judge(names: list[str], scales: dict[str, Any], targets: list[dict[str, Any]], n: int,
          crystals: list[Structure | CrystalError]) -> dict[str, Any]:
    """One row of the table, with every pair of asked and found."""
    check = Validity().check
    valid = [i for i, c in enumerate(crystals) if not isinstance(c, CrystalError) and not check(c)]
    some: list[Any] = [crystals[i] for i in valid]
    row: dict[str, Any] = {"valid": len(valid) / len(crystals),
                           "unique": len(set(duplicate_groups(some, matcher=False).tolist())) / len(crystals)}
    hits = np.ones(len(crystals), bool)
    for name in names:
        asked, found = [targets[i // n][name] for i in valid], measured(name, some)
        hit = np.zeros(len(crystals), bool)
        if isinstance(scales.get(name), Transform):
            here, there = (np.clip(scales[name].scaled(v), 0, 1) for v in (found, asked))
            hit[valid] = np.abs(here - there) <= CLOSE  # NaN is no hit
            if np.isfinite(found).any():
                row[f"mae {name}"] = float(np.nanmean(np.abs(np.array(found) - asked)))
        else:
            hit[valid] = [same(name, a, f) for a, f in zip(asked, found, strict=True)]
        row[f"hit {name}"] = float(hit.mean())
        row[f"pairs {name}"] = [[a, f] for a, f in zip(asked, found, strict=True) if f == f]  # not NaN
        hits &= hit
    if len(names) > 1:
        row["hit all"] = float(hits.mean())
    return row


def plot(rows: list[dict[str, Any]], output: Path) -> None:
    """Asked against found of each number that was asked for alone, for every weight."""
    alone = [r for r in rows if "+" not in r["ask"] and f"mae {r['ask']}" in r]
    names, weights = list(dict.fromkeys(r["ask"] for r in alone)), list(dict.fromkeys(r["weight"] for r in alone))
    if not names:
        return
    plt.rcParams["svg.hashsalt"] = "rlgen"  # the same file from every run
    figure, axes = plt.subplots(len(names), len(weights), figsize=(2.4 * len(weights), 2.3 * len(names)),
                                squeeze=False, sharex="row", sharey="row")
    for row in alone:
        axis = axes[names.index(row["ask"])][weights.index(row["weight"])]
        pairs = np.array(row[f"pairs {row['ask']}"], float)
        axis.plot(*[[pairs[:, 0].min(), pairs[:, 0].max()]] * 2, color="#999999", linewidth=0.8)
        axis.plot(pairs[:, 0], pairs[:, 1], ".", color="#3b6ea5", markersize=2.5, alpha=0.5)
        axis.set_title(f"{row['ask']}, weight {row['weight']:g}", fontsize=7)
        axis.tick_params(labelsize=6)
        low, high = pairs[:, 0].min(), pairs[:, 0].max()
        margin = 0.3 * (high - low) or 1.0
        axis.set_ylim(low - margin, high + margin)
    for name, axis in zip(names, axes[:, 0], strict=True):
        axis.set_ylabel(f"found ({PROPERTIES[name].unit or '1'})" if name in PROPERTIES else "found", fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("asked", fontsize=7)
    figure.tight_layout()
    figure.savefig(output / "conditions.svg", metadata={"Date": None})
    plt.close(figure)


def main(policy: str, ask: str = "", weights: str = "0,1,1.5,2,3", targets: str = "5", n: str = "40", seed: str = "0",
         output: str = "runs/conditions") -> None:
    loaded, prompts = CrystalPolicy.load(policy)
    scales = loaded.representation.conditions
    if not scales:
        raise UserError(f"policy={policy} was trained on no properties: python -m rlgen.pretrain conditions=density,…")
    rows: list[dict[str, Any]] = []
    for asked in ask.split(",") if ask else scales:
        names = asked.split("+")
        wanted = targets_of(names, prompts, int(targets), np.random.default_rng(int(seed)))
        for weight in map(float, weights.split(",")):
            began = time.process_time()
            crystals = draw(loaded, prompts, wanted, int(n), weight, int(seed))
            row = {"ask": asked, "weight": weight, "samples": len(crystals), "seconds": time.process_time() - began}
            rows.append(row | judge(names, scales, wanted, int(n), crystals))
            shown = {k: v for k, v in rows[-1].items() if not k.startswith("pairs")}
            print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()),
                  flush=True)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "conditions.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    plot(rows, folder)
    print(f"{folder}: conditions.json, conditions.svg")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="No Pauling electronegativity")
    warnings.filterwarnings("ignore", message="gcd is deprecated")
    try:
        main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))
    except UserError as error:
        raise SystemExit(str(error)) from None
