"""A run directory, exact across resumes: settings, `metrics.jsonl`, notes, TensorBoard events, `samples.parquet`."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from rewards.guards import GUARDS
from rlgen import samples
from rlgen.conditions import known
from rlgen.properties import PROPERTIES
from rlgen.types import CrystalError, RewardBreakdown, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pymatgen.core import Structure

CONFIG, METRICS, NOTES = "config.yaml", "metrics.jsonl", "notes.jsonl"


class Run:
    """Writes a run directory; used as a context manager.

    resume: the step of the checkpoint the run goes on from; whatever was logged later is dropped, so that the files
    equal those of an uninterrupted run. Without it the directory must not hold a run yet.
    """

    def __init__(
        self,
        directory: Path | str,
        config: Mapping[str, Any] | DictConfig,
        *,
        resume: int | None = None,
        tensorboard: bool = True,
    ):
        self.directory = Path(directory)
        self._metrics = self.directory / METRICS
        self._parts = self.directory / samples.PARTS
        self._table = self.directory / samples.TABLE
        if resume is None:
            if self._metrics.exists() or self._parts.exists():
                raise UserError(f"{self.directory} already holds a run: resume it or choose another directory")
            self.directory.mkdir(parents=True, exist_ok=True)
        elif not self.directory.is_dir():
            raise UserError(f"{self.directory}: no run to resume here")
        else:
            self._drop_later(resume)
        config = config if OmegaConf.is_config(config) else OmegaConf.create(dict(config))
        _replace(self.directory / CONFIG, OmegaConf.to_yaml(config).encode())
        self._log = self._metrics.open("a", encoding="utf-8")
        self._writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Events of a killed run lie in older files: purge_step tells TensorBoard to leave out what we write again.
            purge = None if resume is None else resume + 1
            self._writer = SummaryWriter(str(self.directory / "tensorboard"), purge_step=purge, flush_secs=20)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def log_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """One line of `metrics.jsonl` and one TensorBoard point each; call it once a step. Not finite becomes null."""
        plain = {name: float(value) for name, value in scalars.items()}
        line = {"step": step} | {name: value if math.isfinite(value) else None for name, value in plain.items()}
        self._log.write(json.dumps(line, allow_nan=False) + "\n")
        self._log.flush()
        if self._writer is not None:
            for name, value in plain.items():
                if math.isfinite(value):
                    self._writer.add_scalar(name, value, step)

    def log_text(self, step: int, name: str, text: str) -> None:
        if self._writer is not None:
            self._writer.add_text(name, text, step)

    def note(self, step: int, text: str) -> None:
        """Something out of the ordinary: printed, in TensorBoard, and a line of `notes.jsonl`."""
        print(f"step {step}: {text}")
        with (self.directory / NOTES).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "note": text}, ensure_ascii=False) + "\n")
        self.log_text(step, "notes", text)

    def notes(self) -> list[str]:
        """All notes so far, with their steps."""
        path = self.directory / NOTES
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [f"step {note['step']}: {note['note']}" for note in map(json.loads, lines)]

    def log_figure(self, step: int, name: str, figure: Figure) -> None:
        """The figure as a TensorBoard image, drawn by Agg without pyplot's global state."""
        if self._writer is not None:
            from matplotlib.backends.backend_agg import FigureCanvasAgg

            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            self._writer.add_image(name, np.asarray(canvas.buffer_rgba())[..., :3], step, dataformats="HWC")

    def log_samples(
        self,
        step: int,
        crystals: Sequence[Structure | CrystalError],
        columns: Mapping[str, Sequence[Any] | np.ndarray] | None = None,
    ) -> None:
        """Keep a step's samples with their columns (B,): one file a step, so that a kill spoils no earlier ones."""
        table = samples.frame(crystals, columns)
        table.insert(0, "step", step)
        self._parts.mkdir(exist_ok=True)
        _write_table(self._parts / f"step_{step:09d}.parquet", table)

    def merge_samples(self) -> Path | None:
        """Gather the steps' files in `samples.parquet`; None if no sample was logged."""
        parts = {int(part.stem.removeprefix("step_")): part for part in sorted(self._parts.glob("step_*.parquet"))}
        if parts:
            tables = [pd.read_parquet(part) for part in parts.values()]
            if self._table.exists():
                # A step in both places was merged by a run that was killed before it removed the step's file.
                merged = pd.read_parquet(self._table)
                tables.insert(0, merged[~merged["step"].isin(list(parts))])
            whole = pd.concat([table for table in tables if len(table)], ignore_index=True)
            _write_table(self._table, whole.sort_values(["step", "index"], kind="stable", ignore_index=True))
        shutil.rmtree(self._parts, ignore_errors=True)
        return self._table if self._table.exists() else None

    def close(self) -> None:
        self._log.close()
        if self._writer is not None:
            self._writer.close()
        self.merge_samples()

    def _drop_later(self, step: int) -> None:
        """Remove what was logged after a step, and the torn last lines of a killed run."""
        for path in (self._metrics, self.directory / NOTES):
            if path.exists():
                kept = [line for line in path.read_bytes().splitlines(keepends=True) if _step(line) <= step]
                _replace(path, b"".join(kept))
        for part in self._parts.glob("step_*.parquet"):
            if int(part.stem.removeprefix("step_")) > step:
                part.unlink()
        if self._table.exists():
            table = pd.read_parquet(self._table)
            if (table["step"] > step).any():
                _write_table(self._table, table[table["step"] <= step].reset_index(drop=True))


def breakdown_columns(breakdown: RewardBreakdown) -> dict[str, Any]:
    """Columns (B,) of the samples table: `total`, `status`, `reason`, `<name>` (score), `<name>_raw`, and the extra.

    What was asked of a sample is its `condition`, so that the score of the reward `condition` is `condition_score`.
    """
    columns: dict[str, Any] = {"total": breakdown.total, "status": breakdown.status, "reason": breakdown.reason}
    for k, name in enumerate(breakdown.names):
        score = f"{name}_score" if name == "condition" else name
        columns |= {score: breakdown.score[:, k], f"{name}_raw": breakdown.raw[:, k]}
    return columns | {name: values for name, values in breakdown.extra.items() if name not in columns}


def breakdown_scalars(breakdown: RewardBreakdown) -> dict[str, float]:
    """Means for TensorBoard: total, validity and failures over all B samples, each reward over those it measured."""
    scalars = {
        "reward/total": float(np.mean(breakdown.total)),
        "reward/failed_fraction": float(np.mean(breakdown.status == "failed")),
        "sample/valid": float(np.mean(breakdown.status != "invalid")),
    }
    for k, name in enumerate(breakdown.names):
        scalars[f"reward/{name}"] = _mean(breakdown.score[:, k])
        scalars[f"reward/{name}_raw"] = _mean(breakdown.raw[:, k])
    if "stability" in breakdown.names:  # a guard that refused nothing is 0, not a gap in the curve
        scalars |= {f"guard/{guard}": 0.0 for guard in GUARDS}
    scalars |= _asked_scalars(breakdown.extra)
    counted = breakdown.counters
    hits, misses = counted.get("cache_hits", 0), counted.get("cache_misses", 0)
    if hits + misses:
        scalars["cache/hit_rate"] = hits / (hits + misses)
    return scalars | {name if "/" in name else f"pool/{name}": float(count) for name, count in counted.items()}


def _asked_scalars(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of what was asked: how well each property was met, and by how much a number was missed (mean, in its unit)."""
    scalars = {}
    for name in [column.removeprefix("match_") for column in columns if column.startswith("match_")]:
        scalars[f"condition/{name}"] = _mean(columns[f"match_{name}"])
        if f"measured_{name}" in columns and (name not in PROPERTIES or PROPERTIES[name].kind == "number"):
            asked = np.array([c[name] if known(c.get(name)) else math.nan for c in columns["condition"]], dtype=float)
            scalars[f"condition/{name}_error"] = _mean(np.abs(columns[f"measured_{name}"] - asked))
    return scalars


def energy_histogram(before: Sequence[float], after: Sequence[float] | None = None) -> Figure:
    """Energies above the hull (eV/atom) of two sets of samples; the tails are in the outer bins, NaN is left out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    bins = np.linspace(-0.3, 1.0, 53)
    for label, energies, colour in (("before", before, "0.55"), ("after", after, "tab:blue")):
        if energies is not None:
            values = np.asarray(energies, dtype=float)
            values = np.clip(values[np.isfinite(values)], bins[0], bins[-1])
            axes.hist(values, list(bins), alpha=0.6, label=f"{label} ({len(values)})", color=colour)
    axes.axvline(0.1, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlabel="energy above hull (eV/atom)", ylabel="crystals")
    axes.legend(frameon=False)
    return figure


def crystal_picture(structure: Structure) -> Figure:
    """A crystal's cell, seen slightly from the side; atoms on its faces are drawn on the opposite faces too."""
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors
    from matplotlib.collections import EllipseCollection
    from matplotlib.figure import Figure

    corners = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 3)
    images = (structure.frac_coords % 1)[:, None] + corners
    inside = (images <= 1 + 1e-3).all(-1)
    known = np.minimum(structure.atomic_numbers, len(jmol_colors) - 1)  # the heaviest have no colour
    numbers = np.repeat(known[:, None], 8, axis=1)[inside]
    x, y = np.radians([-76.0, 17.0])  # c upwards, turned a little so that no two edges coincide
    turn_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    turn_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    view = structure.lattice.matrix @ turn_x.T @ turn_y.T
    atoms, box = images[inside] @ view, corners @ view
    figure = Figure(figsize=(4, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for a in range(8):
        for b in range(a):
            if np.abs(corners[a] - corners[b]).sum() == 1:
                axes.plot(*box[[a, b], :2].T, color="0.4", linewidth=0.8, zorder=0)
    order = np.argsort(atoms[:, 2])
    sizes = 1.1 * covalent_radii[numbers[order]]  # diameters in Å, little more than half the real ones: no atom hides
    circles = EllipseCollection(
        sizes, sizes, np.zeros(len(sizes)), units="xy", offsets=atoms[order, :2], transOffset=axes.transData,
        facecolors=jmol_colors[numbers[order]], edgecolors="black", linewidths=0.6,
    )  # fmt: skip
    axes.add_collection(circles)
    edge = 0.55 * sizes.max()
    (left, bottom), (right, top) = box[:, :2].min(0) - edge, box[:, :2].max(0) + edge
    axes.set(aspect="equal", xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    axes.set_title(f"{structure.composition.reduced_formula} ({len(structure)} atoms)", fontsize=10)
    return figure


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _step(line: bytes) -> float:
    """The step of a line of metrics; infinite for a line that was cut off."""
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_bytes(content)
    aside.replace(path)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    table.to_parquet(aside, index=False)
    aside.replace(path)
