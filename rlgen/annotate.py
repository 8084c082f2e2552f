"""Properties for a data set that lacks them: `python -m rlgen.annotate data=my.csv output=annotated`.

What the data have is kept and marked "published"; the rest is computed by reward workers and marked with what computed
it. Killed, the same command goes on where it was. The result is a data set itself: `data=annotated`.
"""

from __future__ import annotations

import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pymatgen.core import Structure

from rlgen import energies
from rlgen.config import main, plain
from rlgen.data import Dataset, Record, load
from rlgen.data.cache import write_aside
from rlgen.data.mp20 import SPLITS, split_files
from rlgen.hull.build import key_of
from rlgen.predictors import predictor_of
from rlgen.progress import progress_bar
from rlgen.reward_pool import RewardPool
from rlgen.samples import to_cif
from rlgen.settings import RayConfig
from rlgen.summary import kind
from rlgen.types import Condition, UserError

PUBLISHED = "published"
#: Ends the name of the column that says where a column's values come from.
SOURCE = "_source"
#: What was computed so far, in the output folder until all is.
PIECES = ".pieces"


@dataclass(frozen=True)
class Annotation:
    """Predicts, of each crystal, the properties that its condition names; measured by the pool as if it were a reward.
    """

    energy: str = "auto"
    hull: str | None = None
    functions: Mapping[str, str] = field(default_factory=dict)

    name: ClassVar[str] = "annotation"
    unit: ClassVar[str] = ""
    per_sample: ClassVar[bool] = True

    def predictor(self, name: str) -> Any:
        return predictor_of(name, function=self.functions.get(name), energy=self.energy, hull=self.hull)

    def measure(self, structures: Sequence[Structure], conditions: Sequence[Condition]) -> np.ndarray:
        return self.measure_with_columns(structures, conditions)[0]

    def measure_with_columns(
        self, structures: Sequence[Structure], conditions: Sequence[Condition]
    ) -> tuple[np.ndarray, list[str], dict[str, np.ndarray]]:
        """1 where all is known, why it is not, and the values (B,), NaN where none was wanted or there is none."""
        reasons = [""] * len(structures)
        columns: dict[str, np.ndarray] = {}
        for name in sorted({name for condition in conditions for name in condition}):
            rows = [i for i, condition in enumerate(conditions) if name in condition]
            columns[name] = np.full(len(structures), np.nan)
            columns[name][rows], why = self.predictor(name).predict([structures[i] for i in rows])
            for i, text in zip(rows, why, strict=True):
                if text:
                    reasons[i] = f"{reasons[i]}; {name}: {text}".removeprefix("; ")
        return np.array([np.nan if reason else 1.0 for reason in reasons]), reasons, columns

    def transform(self, raw: np.ndarray) -> np.ndarray:
        return np.asarray(raw, dtype=float)


class Pieces:
    """Values that were computed, on disk, by crystal and property; those of another source are not taken."""

    def __init__(self, folder: Path, sources: Mapping[str, str]):
        self.folder, self.sources = folder, sources
        self.found: dict[tuple[str, str], float] = {}
        for path in sorted(folder.glob("*.parquet")):
            for key, name, value, source in pd.read_parquet(path).itertuples(index=False):
                if sources.get(name) == source:
                    self.found[key, name] = value

    def save(self, values: Mapping[tuple[str, str], float]) -> None:
        """One more file, whole or not at all."""
        self.found |= values
        rows = [(key, name, value, self.sources[name]) for (key, name), value in values.items()]
        table = pd.DataFrame(rows, columns=["key", "name", "value", "source"])
        write_aside(self.folder / f"{uuid.uuid4().hex}.parquet", lambda path: table.to_parquet(path, index=False))


def run(config: Any) -> None:
    columns = [name.strip() for name in config.columns.split(",") if name.strip()]
    if not columns:
        raise UserError("columns= names what is to be computed, such as e_above_hull,band_gap")
    output = Path(config.output)
    if split_files(output):
        raise UserError(f"{output} already holds a data set; to compute more of it: data={output} output=…")
    annotation = Annotation(energies.resolve(config.energy), config.hull, plain(config.functions))
    dataset = load(config.data, limit=config.limit)
    print(dataset.summary())
    pieces = Pieces(output / PIECES, {name: annotation.predictor(name).source for name in columns})
    failed = compute(dataset, columns, annotation, pieces, config.workers, RayConfig(**plain(config.ray)),
                     config.checkpoint_every)
    for split in SPLITS:
        records = dataset.splits.get(split, [])
        table = annotated(records, columns, pieces, earlier(config.data, split, len(records)))
        write_aside(output / f"{split}.csv.gz", partial(table.to_csv, index=False, compression="gzip"))
    shutil.rmtree(output / PIECES, ignore_errors=True)
    for name in columns:
        print(f"{name}: {sum(name in record.properties for record in dataset):,} as they were, others by "
              f"{pieces.sources[name]}")
    print("".join(f"{n:,} without: {what}\n" for what, n in failed.most_common())
          + f"{output}: train, val, test.csv.gz\nnext: python -m rlgen.pretrain data={output}")


def compute(dataset: Dataset, columns: Sequence[str], annotation: Annotation, pieces: Pieces, workers: int,
            ray: RayConfig, every: int) -> Counter[str]:
    """Computes what crystals lack, saving after `every` crystals; returns what failed, by property and kind."""
    failed: Counter[str] = Counter()
    wanted: dict[str, tuple[Record, set[str]]] = {}
    for record in dataset:
        key = key_of(record)
        lacks = {name for name in columns if name not in record.properties and (key, name) not in pieces.found}
        if lacks:  # the same crystal may occur twice and lack something else
            wanted.setdefault(key, (record, set()))[1].update(lacks)
    print(f"{len(dataset):,} crystals, {len(wanted):,} of them lack something that is not computed yet")
    # Crystals of like size make even batches.
    todo = sorted(wanted.items(), key=lambda item: len(item[1][0].numbers))
    if not todo:
        return failed
    with RewardPool([annotation], annotation.name, workers=workers, ray=ray) as pool, progress_bar() as bar:
        task = bar.add_task(", ".join(columns), total=len(todo))
        for start in range(0, len(todo), every):
            piece = todo[start : start + every]
            asked = [dict.fromkeys(lacks, True) for _, (_, lacks) in piece]
            scored = pool.score([record.structure for _, (record, _) in piece], asked)
            values = {(key, name): float(scored.extra[name][i]) for i, (key, (_, lacks)) in enumerate(piece)
                      for name in lacks if name in scored.extra and np.isfinite(scored.extra[name][i])}
            pieces.save(values)
            failed.update(why for reason in scored.reason if reason for why in _kinds(reason))
            bar.advance(task, len(piece))
    return failed


def _kinds(reason: str) -> Iterator[str]:
    """Property and kind of each part of a reason such as "annotation: band_gap: element: Po unknown; …"."""
    for part in reason.removeprefix(f"{Annotation.name}: ").split("; "):
        name, _, why = part.partition(": ")
        yield f"{name}: {kind(why)}" if why else kind(name)


def earlier(data: str, split: str, count: int) -> pd.DataFrame:
    """The columns of sources that an annotated data set has already, one row a crystal; without them an empty table."""
    files = split_files(Path(data).expanduser()) or {}
    table = pd.read_csv(files[split], usecols=lambda name: name.endswith(SOURCE), dtype="string") if files else None
    return table if table is not None and len(table) == count else pd.DataFrame(index=range(count))


def annotated(records: Sequence[Record], columns: Sequence[str], pieces: Pieces, before: pd.DataFrame) -> pd.DataFrame:
    """A split's table: `material_id`, `cif`, `pretty_formula`, all properties, and `<column>_source` of those that were
    computed here or before."""
    structures = [record.structure for record in records]
    table = pd.DataFrame({
        "material_id": [record.id for record in records],
        "cif": [to_cif(structure) for structure in structures],
        "pretty_formula": [structure.composition.reduced_formula for structure in structures],
    })
    for name in sorted({name for record in records for name in record.properties} | set(columns)):
        table[name] = np.array([record.properties.get(name, np.nan) for record in records], dtype=float)
        source = before.get(f"{name}{SOURCE}")
        if name not in columns and source is None:
            continue
        marks = np.where(table[name].notna(), PUBLISHED, "").astype(object)
        if source is not None:
            marks = source.fillna("").to_numpy(dtype=object)
        if name in columns:
            for i, record in enumerate(records):
                value = pieces.found.get((key_of(record), name))
                if value is not None and name not in record.properties:
                    table.loc[i, name], marks[i] = value, pieces.sources[name]
        table[f"{name}{SOURCE}"] = marks
    return table


if __name__ == "__main__":
    main("annotate", run)
