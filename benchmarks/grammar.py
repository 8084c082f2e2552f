"""What the grammar guarantees, and what it costs: `python benchmarks/grammar.py rollouts=10000 names=atoms,orbits`.

Rollouts of randomly initialised `tiny` policies, for prompts drawn as the shipped policy's training data: how many
decode, have the number of atoms and the element asked for, keep their atoms 0.5 Å apart, and, by spglib at 0.01 Å, are
in the space group asked for; a tenth as many rollouts with a formula asked for, and how many have it; how many the
guard `close` of rewards/guards.py refuses. And, in sampling 256 crystals with the `small` policy, the share of the
processor time that the grammar takes: for the first that the process samples, and for the next four times 256 (what is
known of occupations is kept).
"""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

import numpy as np
import spglib
import torch
from omegaconf import OmegaConf
from pymatgen.core import Composition, Structure

from policies.model import SHIPPED, CrystalPolicy
from policies.prompts import PromptTable
from policies.representations import REPRESENTATIONS, make
from policies.sampler import decode, sample
from rewards.guards import refuse
from rewards.validity import Validity
from rlgen.config import CONFIGS

COLUMNS = ("decode", "number of atoms", "element", "atoms ≥ 0.5 Å apart", "space group asked for", "formula asked for",
           "refused as close", "share of sampling, the first 256", "the next 1,024")
FORMULAS = ("NaCl", "ZnS", "TiO2", "CaF2", "AlN", "Bi2Te3", "SrTiO3", "MgAl2O4", "LiCoO2", "LiFePO4")
#: Of the sum of two covalent radii, as by default in configs/finetune.yaml.
CLOSEST = 0.6
APART = Validity(min_distance=0.4999, volume_per_atom=(0.0, np.inf), density=(0.0, np.inf))


def policy_of(name: str, size: str) -> CrystalPolicy:
    torch.manual_seed(0)
    return CrystalPolicy.create(make(name, max_atoms=20), **OmegaConf.load(CONFIGS / "policy" / f"{size}.yaml")).eval()


def group(structure: Structure) -> int:
    cell = structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers
    found = spglib.get_symmetry_dataset(cell, symprec=0.01)
    return found.number if found else 0


def promises(name: str, rollouts: int, prompts: PromptTable) -> list[str]:
    conditions = prompts.sample(rollouts, np.random.default_rng(0))
    policy = policy_of(name, "tiny")
    crystals = decode(policy, sample(policy, conditions, torch.Generator().manual_seed(0)))
    good = [(s, c) for s, c in zip(crystals, conditions, strict=True) if isinstance(s, Structure)]
    shares = [len(good), sum(len(s) == c["n_atoms"] for s, c in good),
              sum(c["element"] in s.symbol_set for s, c in good), sum(not APART.check(s) for s, _ in good)]
    # spglib searches cells of 1.5 by 100 Å for minutes; the first thousand of ordinary shape say enough.
    ordinary = [(s, c) for s, c in good if max(s.lattice.abc) < 10 * min(s.lattice.abc)][:1000]
    found = np.mean([group(s) == c["space_group"] for s, c in ordinary]) if name in ("orbits", "invariant") else np.nan
    close = np.mean([refuse(s, CLOSEST, 1.0).startswith("close") for s, _ in good])
    return [*(f"{share / rollouts:.2%}" for share in shares), "–" if np.isnan(found) else f"{found:.1%}",
            f"{with_formulas(policy, rollouts // 10, prompts):.2%}", f"{close:.1%}"]


def with_formulas(policy: CrystalPolicy, rollouts: int, prompts: PromptTable) -> float:
    """The share of rollouts that have the formula asked for, in groups and of sizes that real crystals like it have."""
    rng, possible = np.random.default_rng(2), policy.representation.possible
    conditions = [c for formula in FORMULAS
                  for c in prompts.answering({"formula": formula}, rollouts // len(FORMULAS), rng, possible)]
    crystals = decode(policy, sample(policy, conditions, torch.Generator().manual_seed(2)))
    return float(np.mean([isinstance(s, Structure) and s.composition.reduced_formula == Composition(
        c["formula"]).reduced_formula for s, c in zip(crystals, conditions, strict=True)]))


def cost(name: str, prompts: PromptTable) -> list[str]:
    """Before anything else of this representation, so that nothing but its tables is known at first."""
    policy = policy_of(name, "small")
    sample(policy, [{}], torch.Generator().manual_seed(0))
    rng, spent = np.random.default_rng(1), [0.0]

    def timed(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            start = time.process_time()
            result = function(*arguments)
            spent[0] += time.process_time() - start
            return result
        return call

    begin = policy.representation.start

    def start(*arguments: Any) -> Any:
        state = begin(*arguments)
        for method in ("legal", "advance", "keep"):
            setattr(state, method, timed(getattr(state, method)))
        return state

    policy.representation.start = timed(start)  # type: ignore[method-assign]
    shares = []
    for k in range(5):
        conditions = prompts.sample(256, rng)
        gc.collect()  # what else was made before
        spent[0], started = 0.0, time.process_time()
        sample(policy, conditions, torch.Generator().manual_seed(k))
        shares.append(spent[0] / (time.process_time() - started))
    return [f"{shares[0]:.1%}", f"{np.mean(shares[1:]):.1%}"]


def main(rollouts: int = 10_000, names: str = ",".join(REPRESENTATIONS)) -> None:
    prompts = PromptTable.load(SHIPPED)
    print("| | " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * len(COLUMNS))
    for name in names.split(","):
        shares = cost(name, prompts)
        print(f"| {name} | " + " | ".join([*promises(name, int(rollouts), prompts), *shares]) + " |", flush=True)


if __name__ == "__main__":
    main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))
