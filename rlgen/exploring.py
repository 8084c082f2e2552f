"""From what is asked to ranked crystals: sampled, repeats dropped, relaxed, repeats dropped again, ranked by energy."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pymatgen.core import Structure
from rich.console import Console
from rich.table import Table

from policies.model import CrystalPolicy
from rewards.guards import refuse
from rewards.novelty import Novelty
from rewards.stability import LEFT_FORCE, Stability
from rewards.validity import Validity
from rlgen import energies, samples
from rlgen.config import device_of
from rlgen.drawing import answering, drawn, guidance
from rlgen.evaluation import describe
from rlgen.reference import duplicate_groups
from rlgen.relaxing import Relaxed, relax_samples, summary
from rlgen.types import UserError

#: Rows of the table that is shown.
SHOWN = 15


def search(config: Any, asked: Mapping[str, Any]) -> tuple[list[Structure], pd.DataFrame]:
    """Different relaxed crystals that answer what is asked, ranked, with a row of `ranked` for each; both are written.

    config: that of `rlgen.explore` or `rlgen.predict`.
    """
    started = time.monotonic()
    policy, prompts = CrystalPolicy.load(config.policy, config.representation)
    policy.to(device_of(config.device))  # type: ignore[arg-type]
    policy.guide(guidance(config.guidance, policy, [asked]))
    conditions = answering(policy, prompts, asked, config.n, np.random.default_rng(config.seed))
    generator = torch.Generator(policy.device).manual_seed(config.seed)
    crystals, _ = drawn(policy, conditions, generator, batch=config.batch, temperature=config.temperature)
    problems = [Validity().check(c) if isinstance(c, Structure) else str(c) for c in crystals]
    valid = [c for c, problem in zip(crystals, problems, strict=True) if isinstance(c, Structure) and not problem]
    if not valid:
        raise UserError(f"none of {config.n} samples is a valid crystal; the first: {problems[0]}")
    different = distinct(valid)
    print(f"{config.n} samples, {len(valid)} valid crystals, {len(different)} different ones")
    energy = energies.resolve(config.energy)
    reward = Relaxed(energy, fmax=config.fmax, steps=config.steps, seconds=config.seconds)
    relaxed, columns = relax_samples(different, reward, workers=config.workers)
    print(summary(columns))
    found, table = ranked(relaxed, columns, config.data)
    output = Path(config.output)
    samples.write(output, found, {name: table[name].tolist() for name in table if name != "formula"})
    table.to_csv(output / "ranked.csv", index_label="index")
    show(table)
    print(f"{output}: ranked.csv, cif/ (in that order), samples.extxyz, samples.parquet\n"
          f"in {time.monotonic() - started:.0f} s")
    return found, table


def distinct(crystals: Sequence[Structure]) -> list[Structure]:
    """The first of each group of crystals that are one."""
    return [crystals[i] for i in np.unique(duplicate_groups(crystals), return_index=True)[1]]


def ranked(relaxed: Sequence[Any], columns: dict[str, list[Any]], data: str) -> tuple[list[Structure], pd.DataFrame]:
    """Different relaxed crystals, the lowest above the hull first and doubtful ones last, and a row for each.

    Columns: formula, e_above_hull and energy (eV/atom), novel, space_group, n_atoms (primitive cell), converged,
    max_force (eV/Å), doubt (what a guard says against the energy, "" for nothing).
    """
    rows = [i for i, crystal in enumerate(relaxed) if isinstance(crystal, Structure)
            and np.isfinite(columns["e_above_hull"][i])]
    if not rows:
        raise UserError(f"no crystal has a relaxed energy; the first: {columns['reason'][0]}")
    above = np.array([columns["e_above_hull"][i] for i in rows])
    # The lowest of equal ones stands for them.
    rows = [rows[k] for k in np.argsort(above, kind="stable")]
    groups = duplicate_groups([relaxed[i] for i in rows])
    rows = [rows[k] for k in np.unique(groups, return_index=True)[1]]
    crystals = [relaxed[i] for i in rows]
    novel = Novelty("shipped:all" if data == "shipped" else data).measure(crystals, [{}] * len(crystals))
    sites = [describe(crystal) for crystal in crystals]
    table = pd.DataFrame({
        "formula": [crystal.composition.reduced_formula for crystal in crystals],
        **{name: [columns[name][i] for i in rows] for name in ("e_above_hull", "energy", "converged", "max_force")},
        "novel": novel == 1,
        "space_group": pd.array([site.space_group for site in sites], dtype="Int64"),
        "n_atoms": [site.n_atoms for site in sites],
    })
    table["doubt"] = [doubt(c, e, f) for c, e, f in zip(crystals, table["e_above_hull"], table["max_force"],
                                                        strict=True)]
    order = np.lexsort([table["e_above_hull"], table["doubt"] != ""])
    return [crystals[i] for i in order], table.iloc[order].reset_index(drop=True)


def doubt(crystal: Structure, above: float, force: float) -> str:
    """Why an energy above the hull is not to be believed, by the guards of the stability reward."""
    guard = Stability()
    if reason := refuse(crystal, guard.closest, guard.vacuum):
        return reason
    if force > LEFT_FORCE:
        return f"force: {force:.2f} eV/Å are left"
    return f"low: {-above:.2f} eV/atom below the hull" if above < -guard.floor else ""


def show(table: pd.DataFrame) -> None:
    sound = table[table["doubt"] == ""]
    shown = Table("", "formula", "eV/atom above hull", "space group", "atoms", "known")
    for i, row in sound.head(SHOWN).iterrows():
        shown.add_row(str(i), row["formula"], f"{row['e_above_hull']:.3f}", str(row["space_group"]),
                      str(row["n_atoms"]), "" if row["novel"] else "yes")
    Console().print(shown)
    below, near = (int((sound["novel"] & (sound["e_above_hull"] <= limit)).sum()) for limit in (0.0, 0.1))
    print(f"{len(sound)} different crystals, {len(table) - len(sound)} more that a guard doubts; new ones: {below} at "
          f"or below the hull, {near} within 0.1 eV/atom of it")
