"""What a command asks for: every combination of the values that are given, or the rows of a file."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from policies.representations.asked import Asked
from rewards.expression import parse
from rlgen.conditions import ALWAYS, HARD, known
from rlgen.config import plain, read_value
from rlgen.drawing import answering
from rlgen.samples import TABLES
from rlgen.types import Condition, UserError

#: Crystals behind the shares of what is asked for.
SHARES = 500


def combinations(condition: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of what is asked, where a key has several values: a list, or text with commas.

    null among them leaves the key out. Elements that belong together are one value, "Li-Fe-O"; as those of `elements`
    and `chemical_system` always do, these may be written Li,Fe,O, too. UserError for a key without a value.
    """
    values = {key: _values(key, value) for key, value in condition.items()}
    if empty := [key for key, several in values.items() if not several]:
        raise UserError(f"condition.{empty[0]}: an empty list asks for nothing; leave it out")
    return [{key: value for key, value in zip(values, chosen, strict=True) if value is not None}
            for chosen in product(*values.values())]


def _values(key: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        several = [read_value(part.strip()) for part in value.split(",") if part.strip()]
    else:
        several = list(value) if isinstance(value, list | tuple) else [value]
    together = key in ("elements", "chemical_system") and not any("-" in str(one) for one in several)
    return [value] if together else several


class Asking:
    """Where the prompts of fine-tuning come from: the data's joint distribution, a grid of values, or a file.

    With a grid or a file, each combination or row is asked for as often as any other, and what it leaves open follows
    crystals of the data that fit it.
    """

    def __init__(self, prompts: PromptTable, config: Any):
        """config: all settings of the run. UserError for settings that cannot be."""
        settings = plain(config.prompts)
        self.prompts, self.power = prompts, settings["power"]
        # Told all that a known crystal has, a policy writes it again; so only where that is what earns.
        told = float("condition" in parse(config.reward.expression).names)
        self.keep = {key: settings[key] for key in ALWAYS} | dict.fromkeys(prompts.properties, told)
        self.keep |= settings["properties"]
        self._check_properties(settings["properties"])
        if settings["grid"] and settings["file"]:
            raise UserError("prompts.grid and prompts.file cannot both be given")
        if settings["diversity"] < 1 and (settings["grid"] or settings["file"] or config.algorithm.name == "trl"):
            raise UserError(f"prompts.diversity={settings['diversity']}: what to ask is only learnt where prompts are "
                            "the data's, not a grid's or a file's, and not with algorithm=trl")
        self.asked = combinations(settings["grid"]) if settings["grid"] else _read(settings["file"])
        if config.algorithm.name == "trl" and any(Asked.of(one) for one in self.asked):
            raise UserError(f"algorithm=trl does not know what only the grammar sees to ({', '.join(HARD)}, several "
                            "elements); ask for it with algorithm=grpo")

    def draw(self, n: int, rng: np.random.Generator, policy: CrystalPolicy) -> list[Condition]:
        """n conditions. UserError for what the policy cannot be asked for."""
        if not self.asked:
            return self.prompts.sample(n, rng, power=self.power, keep=self.keep)
        found: list[Condition] = []
        for one in (self.asked[i] for i in rng.integers(len(self.asked), size=n)):
            condition, = answering(policy, self.prompts, one, 1, rng)
            found.append({k: v for k, v in condition.items() if k in one or rng.random() < self.keep.get(k, 1.0)})
        return found

    def check(self, policy: CrystalPolicy) -> None:
        """UserError for what a grid or a file asks for and the policy cannot be asked for."""
        for one in self.asked:
            answering(policy, self.prompts, one, 1, np.random.default_rng(0))

    def shares(self, policy: CrystalPolicy) -> dict[tuple[int, int], float]:
        """How much of what a grid or a file asks for goes to each pair of space group and number of atoms."""
        drawn = self.draw(SHARES, np.random.default_rng(0), policy)
        found: dict[tuple[int, int], float] = {}
        for condition in drawn:
            if "space_group" in condition and "n_atoms" in condition:
                pair = int(condition["space_group"]), int(condition["n_atoms"])
                found[pair] = found.get(pair, 0.0) + 1 / SHARES
        return found

    def _check_properties(self, shares: Mapping[str, Any]) -> None:
        for name, share in shares.items():
            if name not in self.prompts.properties:
                raise UserError(f"prompts.properties.{name}: this policy was not trained on it; it knows "
                                f"{', '.join(self.prompts.properties) or 'no properties'}")
            if isinstance(share, bool | str) or not 0 <= share <= 1:
                raise UserError(f"prompts.properties.{name}={share}: must be between 0 and 1")


def _read(file: str | None) -> list[dict[str, Any]]:
    """The conditions in a table (CSV, Parquet or JSON lines), a row each, its columns their keys; empty is not asked.

    Without a file none. UserError: there is no such file, or a row asks for nothing.
    """
    if file is None:
        return []
    path = Path(file)
    if path.suffix not in TABLES or not path.exists():
        raise UserError(f"prompts.file={file}: {'no such file' if path.suffix in TABLES else 'no table'}; known: "
                        f"{', '.join(TABLES)}")
    rows = [{str(key): value for key, value in row.items() if known(value)}
            for row in TABLES[path.suffix](path).to_dict("records")]
    empty = next((i for i, row in enumerate(rows, 1) if not row), None)
    if not rows or empty is not None:
        raise UserError(f"prompts.file={file}: {f'row {empty} asks for nothing' if rows else 'it has no rows'}")
    return [{key: int(v) if key in ("space_group", "n_atoms", "max_atoms") else v for key, v in row.items()}
            for row in rows]
