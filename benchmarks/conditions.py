"""What is asked of a policy against what comes: `python benchmarks/conditions.py policy=shipped n=40`.

For each of `ask=density,density+hhi_production+space_group,band_gap>4` (a plus: together; without ask every property
that the policy was trained on, the space group, and pairs and triples of density, HHI and space group), asks for
`targets` values, `n` crystals each, with every guidance weight of `weights`; 0 is a policy that is not told the
property, only the space group, size and element of crystals that have it. A single number is asked for at evenly spaced
quantiles of the training data, from the 2nd to the 98th per cent, or, rare, of those of its crystals above a limit;
several together as crystals of the data have them. `compare=runs/tuned/policy` asks another policy, as one fine-tuned
from it, the same. Writes tables (conditions.json, conditions.md) and plots into `output`.

mae: mean distance of what was measured from what was asked, over valid crystals, in the property's unit. hit: within
5 % of the range of its scale, or the right category, or above the limit; new: hits that are no crystal of MP-20. hit,
new, valid and unique are shares of all samples. Energies above the hull are those of crystals that a potential
(`energy=`) has relaxed, by 40 steps at most, as are those of the data; all else is measured as written.
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from pymatgen.core import Structure

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from rewards.stability import Stability
from rewards.validity import Validity
from rlgen.conditions import CATEGORIES, NUMBER_OF, Category, Transform
from rlgen.drawing import answering, drawn
from rlgen.predictors import predictor_of
from rlgen.properties import PROPERTIES
from rlgen.protostructure import MIRRORED
from rlgen.reference import Reference, duplicate_groups
from rlgen.types import CrystalError, UserError

#: Share of the range of a scale within which a number counts as hit.
CLOSE = 0.05
#: Asked for in pairs and triples, those of them that a policy knows.
TOGETHER = ("density", "hhi_production", "space_group")


def asks_of(scales: dict[str, Any]) -> list[str]:
    """What is asked for where nothing else is said."""
    some = [name for name in TOGETHER if name in scales or name == "space_group"]
    return [*scales, "space_group", *("+".join(names) for k in (2, 3) for names in combinations(some, k))]


def parse(ask: str) -> tuple[list[str], float]:
    """Its properties, and the limit above which one counts as hit, NaN where there is none."""
    name, _, limit = ask.partition(">")
    try:
        return name.split("+"), float(limit or "nan")
    except ValueError:
        raise UserError(f"ask={ask}: write density, density+space_group or density>15") from None


def targets_of(ask: str, prompts: PromptTable, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """What is asked for: values of one property, or joint values of crystals of the data for several."""
    names, limit = parse(ask)
    if not math.isnan(limit) and (len(names) > 1 or names[0] in CATEGORIES or names[0] not in prompts.properties):
        raise UserError(f"ask={ask}: only a single number of {', '.join(prompts.properties)} is above a limit")
    if len(names) == 1 and names[0] in CATEGORIES:
        return [{names[0]: name} for name in CATEGORIES[names[0]].names]
    if len(names) == 1 and names[0] in prompts.properties:
        known = prompts.properties[names[0]]
        known, low = (known, 0.02) if math.isnan(limit) else (known[known > limit], 0.0)
        if not np.isfinite(known).any():
            raise UserError(f"ask={ask}: no crystal of the training data is known to have that")
        return [{names[0]: float(v)} for v in np.nanquantile(known, np.linspace(low, 0.98, count))]
    found: list[dict[str, Any]] = []
    for i in rng.permutation(len(prompts)).tolist():
        row = prompts.row(i, rng)
        if all(name in row for name in names):
            found.append({name: row[name] for name in names})
            if len(found) == count:
                return found
    raise UserError(f"no {count} crystals of the data have all of {', '.join(names)}")


def measured(name: str, scale: Any, crystals: list[Structure], energy: str) -> list[Any]:
    """Values of a property, in the form in which it is asked for."""
    if NUMBER_OF.get(name, name) == "e_above_hull":
        values = Stability(energy=energy, mode="relax", steps=40, give_up=False).measure(crystals, [{}] * len(crystals))
    else:
        values, _ = predictor_of(name).predict(crystals)
    if isinstance(scale, Category):
        return [scale.names[int(v)] if np.isfinite(v) else None for v in scale.places(values)]
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


def judge(ask: str, scales: dict[str, Any], targets: list[dict[str, Any]], n: int,
          crystals: list[Structure | CrystalError], energy: str, known: Reference) -> dict[str, Any]:
    """One row of the table, with every pair of asked and found."""
    check, (names, limit) = Validity().check, parse(ask)
    valid = [i for i, c in enumerate(crystals) if not isinstance(c, CrystalError) and not check(c)]
    some: list[Any] = [crystals[i] for i in valid]
    row: dict[str, Any] = {"valid": len(valid) / len(crystals),
                           "unique": len(set(duplicate_groups(some, matcher=False).tolist())) / len(crystals)}
    hits = np.ones(len(crystals), bool)
    for name in names:
        scale = scales.get(name, CATEGORIES.get(name))
        asked, found = [targets[i // n][name] for i in valid], measured(name, scale, some, energy)
        hit = np.zeros(len(crystals), bool)
        if isinstance(scale, Transform):
            here, there = (np.clip(scale.scaled(v), 0, 1) for v in (found, asked))
            hit[valid] = np.abs(here - there) <= CLOSE if math.isnan(limit) else np.array(found) > limit  # NaN is none
            if np.isfinite(found).any():
                row[f"mae {name}"] = float(np.nanmean(np.abs(np.array(found) - asked)))
        else:
            hit[valid] = [same(name, a, f) for a, f in zip(asked, found, strict=True)]
        row[f"hit {name}"] = float(hit.mean())
        row[f"pairs {name}"] = [[a, f] for a, f in zip(asked, found, strict=True) if f == f]  # not NaN
        hits &= hit
    novel = np.zeros(len(crystals), bool)
    novel[valid] = [not known.contains(crystal) for crystal in some]
    return row | {"hit": float(hits.mean()), "new": float((hits & novel).mean())}


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown: a row for what was asked, a policy and a weight; the errors of all that has one."""
    lines = ["| asked | policy | weight | hit | new | mean error | valid | unique |", "|---|---|---" + "|---" * 5 + "|"]
    for row in rows:
        errors = ", ".join(f"{row[key]:.3g} {unit_of(key.removeprefix('mae '))}".rstrip() for key in row
                           if key.startswith("mae "))
        lines.append(f"| {row['ask']} | {row['policy']} | {row['weight']:g} | {row['hit']:.1%} | {row['new']:.1%} | "
                     f"{errors} | {row['valid']:.1%} | {row['unique']:.1%} |")
    return "\n".join(lines) + "\n"


def unit_of(name: str) -> str:
    return PROPERTIES[name].unit if name in PROPERTIES else ""


def pairs_plot(rows: list[dict[str, Any]]) -> plt.Figure | None:
    """Asked against found of each number that was asked for alone, for every policy and weight."""
    alone = [r for r in rows if f"mae {parse(r['ask'])[0][0]}" in r and len(parse(r["ask"])[0]) == 1]
    down = list(dict.fromkeys((r["ask"], r["policy"]) for r in alone))
    across = list(dict.fromkeys(r["weight"] for r in alone))
    if not alone:
        return None
    figure, axes = plt.subplots(len(down), len(across), figsize=(2.4 * len(across), 2.3 * len(down)), squeeze=False,
                                sharex="row", sharey="row")
    for row in alone:
        axis, name = axes[down.index((row["ask"], row["policy"]))][across.index(row["weight"])], parse(row["ask"])[0][0]
        pairs = np.array(row[f"pairs {name}"], float)
        low, high = pairs[:, 0].min(), pairs[:, 0].max()
        axis.plot([low, high], [low, high], color="#999999", linewidth=0.8)
        axis.plot(pairs[:, 0], pairs[:, 1], ".", color="#3b6ea5", markersize=2.5, alpha=0.5)
        axis.set_title(f"{row['ask']}, {row['policy']}, weight {row['weight']:g}", fontsize=6)
        axis.tick_params(labelsize=6)
        margin = 0.3 * (high - low) or 1.0
        axis.set_ylim(low - margin, high + margin)
    for (ask, _), axis in zip(down, axes[:, 0], strict=True):
        axis.set_ylabel(f"found ({unit_of(parse(ask)[0][0]) or '1'})", fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("asked", fontsize=7)
    return figure


def weights_plot(rows: list[dict[str, Any]]) -> plt.Figure:
    """Share of hits by weight of guidance, a panel for all that was asked, a line for each policy."""
    asks, policies = list(dict.fromkeys(r["ask"] for r in rows)), list(dict.fromkeys(r["policy"] for r in rows))
    figure, axes = plt.subplots(-(-len(asks) // 4), min(4, len(asks)), figsize=(9, 2.2 * -(-len(asks) // 4)),
                                squeeze=False, sharex=True)
    for axis in axes.flat[len(asks):]:
        axis.set_axis_off()
    for ask, axis in zip(asks, axes.flat, strict=False):
        for policy in policies:
            some = sorted((r["weight"], r["hit"]) for r in rows if (r["ask"], r["policy"]) == (ask, policy))
            axis.plot(*zip(*some, strict=True), "o-", markersize=3, linewidth=1, label=policy)
        axis.set_title(ask, fontsize=7)
        axis.set_ylim(0, None)
        axis.tick_params(labelsize=6)
    axes[0][0].set_ylabel("hit", fontsize=7)
    axes[0][0].legend(fontsize=6)
    figure.supxlabel("weight of guidance", fontsize=7)
    return figure


def names_of(policy: str, compare: str) -> dict[str, str]:
    """Where each policy lies, by what tells the two apart."""
    if not compare:
        return {"policy": policy}
    one, other = ([part for part in Path(path).parts if part != "policy"] or [path] for path in (policy, compare))
    return {one[-1]: policy, other[-1] if other[-1] != one[-1] else "/".join(other): compare}


def main(policy: str, compare: str = "", ask: str = "", weights: str = "0,1,1.5,2,3", targets: str = "5", n: str = "40",
         seed: str = "0", energy: str = "auto", output: str = "runs/conditions") -> None:
    _, prompts = CrystalPolicy.load(policy)
    loaded = {name: CrystalPolicy.load(path)[0] for name, path in names_of(policy, compare).items()}
    scales = next(iter(loaded.values())).representation.conditions
    if not scales:
        raise UserError(f"policy={policy} was trained on no properties: python -m rlgen.pretrain conditions=density,…")
    rows: list[dict[str, Any]] = []
    known = Reference.load("shipped:all")
    for asked in ask.split(",") if ask else asks_of(scales):
        wanted = targets_of(asked, prompts, int(targets), np.random.default_rng(int(seed)))
        for name, one in loaded.items():
            for weight in map(float, weights.split(",")):
                began = time.process_time()
                crystals = draw(one, prompts, wanted, int(n), weight, int(seed))
                row = {"ask": asked, "policy": name, "weight": weight, "samples": len(crystals),
                       "seconds": time.process_time() - began}
                rows.append(row | judge(asked, scales, wanted, int(n), crystals, energy, known))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "conditions.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (folder / "conditions.md").write_text(table(rows), encoding="utf-8")
    plt.rcParams["svg.hashsalt"] = "rlgen"  # the same file from every run
    for file, figure in (("conditions.svg", pairs_plot(rows)), ("weights.svg", weights_plot(rows))):
        if figure is not None:
            figure.tight_layout()
            figure.savefig(folder / file, metadata={"Date": None})
    print(f"{folder}: conditions.json, conditions.md, conditions.svg, weights.svg")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="No Pauling electronegativity")
    warnings.filterwarnings("ignore", message="gcd is deprecated")
    try:
        main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))
    except UserError as error:
        raise SystemExit(str(error)) from None
