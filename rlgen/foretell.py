"""Teach MEGNet what a policy's crystals relax to: `python -m rlgen.foretell input=wrote relaxed=relaxed output=…`.

MEGNet has seen crystals that exist; of those that a policy writes it is often wrong, and most where the policy was
fine-tuned by its guesses. Taught by relaxations of such crystals, it foretells others in milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pymatgen.core import Structure
from scipy.stats import spearmanr

from rlgen import energies, samples
from rlgen.config import main
from rlgen.energies.base import Cell, CellError, Edges
from rlgen.energies.megnet import MEGNetPotential
from rlgen.hull import Hull, HullError
from rlgen.metrics import roc_auc
from rlgen.progress import progress_bar
from rlgen.types import UserError

CARD = "foretold.json"
#: Labels (eV/atom above the hull) are clipped to these: further up a crystal is only unstable, further down a mistake.
LOWEST, HIGHEST = -0.5, 1.0
METASTABLE = 0.1
#: Errors (eV/atom) up to which the loss is quadratic; a mistaken label costs no more than its size beyond.
HUBER = 0.1


@dataclass(frozen=True)
class Pair:
    """A crystal as written, with its bonds; target: the energy (eV/atom) that MEGNet ought to give it, which is
    `on_hull` eV/atom, the hull at its composition, and what it is above the hull when relaxed."""

    cell: Cell
    bonds: Edges
    on_hull: float
    target: float


def pairs_of(crystals: Sequence[Any], above: np.ndarray, potential: MEGNetPotential) -> list[Pair]:
    """Of the crystals that have an energy above the hull, a geometry, and elements that MEGNet knows."""
    hull = Hull.load(potential.scale)
    found = []
    for crystal, label in zip(crystals, above, strict=True):
        if not isinstance(crystal, Structure) or not np.isfinite(label):
            continue
        try:
            cell, bonds = potential.prepare(Cell.of(crystal))
            on_hull = -hull.e_above_hull(crystal.composition, 0.0, scale=potential.scale)
        except (CellError, HullError):
            continue
        found.append(Pair(cell, bonds, on_hull, on_hull + float(np.clip(label, LOWEST, HIGHEST))))
    return found


def labels(crystals: samples.SampleTable, relaxed: str) -> np.ndarray:
    """Energies above the hull (B,) of the relaxed crystals, in the samples' order; NaN where one did not relax.

    relaxed: the folder, or those of several potentials joined by ":", whose mean it is, each above its own hull: where
    one is wrong others seldom are. UserError: a table is no `rlgen.relax`'s, or of other crystals.
    """
    return np.mean([labels_of(crystals, folder) for folder in relaxed.split(":")], axis=0)


def labels_of(crystals: samples.SampleTable, folder: str) -> np.ndarray:
    """`labels` of one potential."""
    path = Path(folder) / samples.TABLE
    if not path.is_file():
        raise UserError(f"relaxed={folder}: no {samples.TABLE} there; give the folder that rlgen.relax wrote")
    table = samples.table_of(path)
    if missing := {"name", "e_above_hull", "outcome"} - set(table):
        raise UserError(f"{path}: has no column {', '.join(sorted(missing))}; give the folder that rlgen.relax wrote")
    if table["name"].tolist() != crystals.names:
        raise UserError(f"{path}: holds {len(table)} crystals, which are not the {len(crystals.names)} of input=, in "
                        "their order; relax these")
    return table["e_above_hull"].where(table["outcome"] != "failed").to_numpy(dtype=float)


def batches(pairs: Sequence[Pair], order: Sequence[int], size: int) -> Iterator[list[Pair]]:
    for start in range(0, len(order), size):
        yield [pairs[i] for i in order[start : start + size]]


def predicted(potential: MEGNetPotential, batch: Sequence[Pair]) -> torch.Tensor:
    return potential.per_atom([(pair.cell, pair.bonds) for pair in batch])


@torch.no_grad()
def figures(potential: MEGNetPotential, pairs: Sequence[Pair], size: int) -> dict[str, float]:
    """How well energies above the hull are foretold: mean absolute error (eV/atom) of clipped ones, Spearman's rank
    correlation, and the area under the ROC curve of being metastable (NaN if all are, or none)."""
    potential.network.eval()
    parts = [predicted(potential, batch).cpu().numpy() for batch in batches(pairs, range(len(pairs)), size)]
    guess = np.concatenate(parts) - [pair.on_hull for pair in pairs]
    truth = np.array([pair.target - pair.on_hull for pair in pairs])
    return {"mae": float(np.abs(np.clip(guess, LOWEST, HIGHEST) - truth).mean()),
            "spearman": float(spearmanr(guess, truth).statistic), "auc": roc_auc(-guess, truth <= METASTABLE)}


def teach(potential: MEGNetPotential, pairs: Sequence[Pair], config: Any) -> None:
    """AdamW over `epochs` passes, the rate rising over 100 updates and then falling to 0."""
    network, rng = potential.network, np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    weights = list(network.requires_grad_(True).parameters())
    updates = config.epochs * -(-len(pairs) // config.batch)
    optimiser = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: min(1.0, (k + 1) / 100) * (1 - k / updates))
    network.train()
    with progress_bar() as bar:
        task = bar.add_task("teaching", total=updates)
        for epoch in range(config.epochs):
            for batch in batches(pairs, rng.permutation(len(pairs)).tolist(), config.batch):
                guess = predicted(potential, batch)
                target = guess.new_tensor([pair.target for pair in batch])
                loss = torch.nn.functional.huber_loss(guess, target, delta=HUBER)
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimiser.step()
                schedule.step()
                bar.update(task, advance=1, description=f"teaching, pass {epoch + 1}, loss {loss.item():.4f}")
    network.eval().requires_grad_(False)


def run(config: Any) -> None:
    inputs, outputs = config.input.split(","), config.relaxed.split(",")
    if len(inputs) != len(outputs):
        raise UserError(f"input= names {len(inputs)} and relaxed= {len(outputs)} folders: they go in pairs")
    tables = [samples.read(path) for path in inputs]
    above = np.concatenate([labels(table, path) for table, path in zip(tables, outputs, strict=True)])
    crystals = [crystal for table in tables for crystal in table.crystals]
    potential = MEGNetPotential.load()
    pairs = pairs_of(crystals, above, potential)
    order = np.random.default_rng(config.seed).permutation(len(pairs)).tolist()
    count = round(config.held_out * len(pairs))
    held_out, learnt = [pairs[i] for i in order[:count]], [pairs[i] for i in order[count:]]
    print(f"{len(pairs):,} of {len(crystals):,} crystals have an energy above the hull and bonds: {len(learnt):,} "
          f"to learn from, {len(held_out):,} held out")
    if not learnt:
        raise UserError(f"relaxed={config.relaxed}: nothing to learn from")
    found = {"before": figures(potential, held_out, config.batch)} if held_out else {}
    teach(potential, learnt, config)
    if held_out:
        found["after"] = figures(potential, held_out, config.batch)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    potential.save(output)
    card = {"input": config.input, "relaxed": config.relaxed, "crystals": len(learnt), "held_out": len(held_out)}
    (output / CARD).write_text(json.dumps(card | found, indent=1) + "\n", encoding="utf-8")
    for when, one in found.items():
        print(f"{when:6}  mean absolute error {one['mae']:.3f} eV/atom, rank correlation {one['spearman']:.3f}, area "
              f"under the ROC curve of metastable {one['auc']:.3f}")
    print(f"{output}: {energies.TAUGHT}, {CARD}\nnext: python -m rlgen.finetune 'reward=novelty*formation' "
          f"reward.formation.energy={output}")


if __name__ == "__main__":
    main("foretell", run)
