"""The page of an evaluation: one HTML file with everything in it, that opens anywhere and loads nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pymatgen.core import Element, Structure

from rlgen.metrics import Estimate
from rlgen.report import SHOWN, notes, rows
from rlgen.report.diagrams import diagrams
from rlgen.report.provenance import provenance

if TYPE_CHECKING:
    from rlgen.evaluation import Evaluation
    from rlgen.formats import Crystal
    from rlgen.hull import Hull

#: Crystals shown in three dimensions, and points of a learning curve, at most.
BEST, POINTS = 24, 300
#: Scalars of a run that are shown first, as far as it has them.
_FIRST = (
    "reward/total", "sample/valid", "reward/novelty", "reward/stability", "reward/stability_raw",
    "diversity/space_groups", "diversity/prototypes", "diversity/elements", "policy/kl", "policy/entropy",
    "policy/nll_real", "pretrain/loss", "pretrain/nll",
)  # fmt: skip
_COUNTERS = ("time/", "pool/", "cache/", "guard/")
_COLUMNS = (
    "formula", "valid", "neutral", "unique", "novel", "sun", "e_above_hull", "e_above_hull_written", "displacement",
    "density", "n_atoms", "n_elements", "space_group", "prototype", "chemical_system", "reason",
)  # fmt: skip


@dataclass
class Page:
    """What a page shows. evaluations and crystals: by the same names, the last one is the one that matters.

    properties: further numbers of the samples, by the same names. hull: for phase diagrams. settings: of the command,
    as text. run: a run's folder, for its learning curves.
    """

    title: str
    evaluations: Mapping[str, Evaluation]
    crystals: Mapping[str, Sequence[Crystal]]
    properties: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    hull: Hull | None = None
    settings: str = ""
    run: Path | None = None

    def write(self, path: Path) -> None:
        """Write the page to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding="utf-8")

    def html(self) -> str:
        """The page's text."""
        sizes = ", ".join(f"{escape(name)}: {one.notes['samples']:,} samples" for name, one in self.evaluations.items())
        text = {name: files("rlgen.report").joinpath(name).read_text(encoding="utf-8")
                for name in ("page.html", "page.css", "page.js", "viewer.js")}
        # No "<" in the data: no text of a sample can end the script that it lies in.
        data = json.dumps(self.data(), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
        parts = {
            "title": escape(self.title), "lead": sizes, "figures": figures(self.evaluations), "data": data,
            "provenance": provenance(self.evaluations, self.settings, self.run), "style": text["page.css"],
            "viewer": text["viewer.js"], "script": text["page.js"],
        }  # fmt: skip
        return re.sub(r"<!--(\w+)-->", lambda found: parts[found[1]], text["page.html"])

    def data(self) -> dict[str, Any]:
        """What the page's scripts draw, as plain data."""
        last = list(self.evaluations)[-1]
        samples = self.evaluations[last].samples
        chosen = best(samples, self.crystals[last])
        used = {z for crystals in self.crystals.values() for c in crystals if isinstance(c, Structure)
                for z in c.atomic_numbers}
        shared = [set(_numeric(table)) for table in self.properties.values()]
        properties = sorted(set.union(*shared)) if shared else []
        definitions = self.evaluations[last].notes["definitions"]
        return {
            "evaluations": [
                {
                    "name": name,
                    "columns": _columns(one.samples, self.properties.get(name), properties),
                    "crystals": [_arrays(c) if isinstance(c, Structure) else None for c in self.crystals[name]],
                }
                for name, one in self.evaluations.items()
            ],
            "properties": properties,
            "thresholds": sorted({definitions["stable"], definitions["metastable"]}),
            "best": chosen,
            "diagrams": [] if self.hull is None else diagrams(samples, chosen, self.hull),
            "curves": [] if self.run is None else list(curves(self.run)),
            "elements": {int(z): _element(int(z)) for z in sorted(used)},
            "periodic_table": [_place(Element.from_Z(z)) for z in range(1, 104)],
        }


def figures(evaluations: Mapping[str, Evaluation]) -> str:
    """The table of all figures with their intervals, and what must be read with it."""
    two = len(evaluations) == 2
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in evaluations)
    lines = [f'<div class="scroll"><table class="figures"><thead><tr><th></th>{head}'
             f'{"<th class=number>change</th>" if two else ""}</tr></thead><tbody>']
    for label, kind, estimates in rows(evaluations):
        cells = "".join(_cell(one, kind, estimates, k, len(estimates)) for k, one in enumerate(estimates))
        change = f'<td class="number">{_change(estimates, kind)}</td>' if two else ""
        lines.append(f"<tr><th>{escape(label)}</th>{cells}{change}</tr>")
    lines.append("</tbody></table></div>")
    if two:
        lines.append('<p class="hint">Bold: the intervals are apart.</p>')
    lines += ['<ul class="notes">', *(f"<li>{escape(note)}</li>" for note in notes(evaluations)), "</ul>"]
    return "".join(lines)


def _cell(one: Estimate, kind: str, all_of_row: Sequence[Estimate], k: int, count: int) -> str:
    if math.isnan(one.value):
        return '<td class="number">–</td>'
    known = [e for e in all_of_row if not math.isnan(e.value)]
    low = 0.0 if kind == "share" else min(0.0, *(e.low for e in known))
    high = 1.0 if kind == "share" else max(e.high for e in known) * 1.05 or 1.0
    left, right, middle = (100 * (x - low) / (high - low) for x in (one.low, one.high, one.value))
    colour = "--c:var(--c1)" if k == count - 1 else "--c:var(--c0)"
    text = SHOWN[kind](one)
    value, _, interval = text.partition(" [")
    return (f'<td class="number">{value} <small>[{interval}</small><span class="interval" style="{colour}">'
            f'<i style="left:{left:.1f}%;width:{right - left:.1f}%"></i><b style="left:{middle:.1f}%"></b></span></td>')


def _change(estimates: Sequence[Estimate], kind: str) -> str:
    before, after = estimates
    if math.isnan(before.value) or math.isnan(after.value):
        return "–"
    by = after.value - before.value
    text = f"{100 * by:+.1f} points" if kind == "share" else f"{by:+.{1 if kind == 'number' else 3}f}"
    apart = after.low > before.high or after.high < before.low
    return f'<span class="apart">{text}</span>' if apart else text


def best(samples: pd.DataFrame, crystals: Sequence[Crystal]) -> list[int]:
    """The samples worth a look: metastable, unique and novel; of each prototype the lowest first, then the others."""
    drawn = np.array([isinstance(crystal, Structure) for crystal in crystals])
    chosen = samples[samples["sun"].to_numpy(bool) & drawn].sort_values("e_above_hull")
    repeats = chosen["prototype"].duplicated() | chosen["prototype"].isna()
    return [int(i) for i in [*chosen.index[~repeats], *chosen.index[repeats]][:BEST]]


def curves(run: Path) -> Iterator[dict[str, Any]]:
    """The scalars of a run over its steps, thinned to means of neighbouring steps; times and counters are left out."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    table = pd.DataFrame([json.loads(line) for line in lines])
    if table.empty:
        return
    names = [str(name) for name in table if name != "step" and not str(name).startswith(_COUNTERS)]
    for name in sorted(names, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)):
        known = table[["step", name]].dropna().astype(float)
        if len(known) > 1:
            group = np.arange(len(known)) * min(POINTS, len(known)) // len(known)
            thin = known.groupby(group).mean()
            yield {"name": name, "steps": _plain(thin["step"]), "values": _plain(thin[name])}


def _columns(samples: pd.DataFrame, more: pd.DataFrame | None, properties: Sequence[str]) -> dict[str, list]:
    found = {name: _plain(samples[name]) for name in _COLUMNS}
    empty = [None] * len(samples)
    return found | {name: empty if more is None or name not in more else _plain(more[name]) for name in properties}


def _numeric(table: pd.DataFrame) -> list[str]:
    """Columns of numbers that are neither an evaluation's own nor only names of rows."""
    skipped = {*_COLUMNS, "index", "step", "sample", "status"}
    return [
        str(name) for name in table
        if name not in skipped and pd.api.types.is_float_dtype(table[name]) and table[name].notna().any()
    ]  # fmt: skip


def _plain(column: pd.Series) -> list[Any]:
    """Values for JSON: null where there is none, numbers to five digits."""
    found: list[Any] = []
    for value in column.tolist():
        if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
            found.append(None)
        else:
            found.append(float(f"{value:.5g}") if isinstance(value, float) else value)
    return found


def _arrays(structure: Structure) -> list[Any]:
    """a, b, c (Å), α, β, γ (degrees), atomic numbers (N,) and fractional coordinates (3 N,)."""
    cell = [round(float(x), 6) for x in structure.lattice.parameters]
    places = [round(float(x), 6) for x in (structure.frac_coords % 1).ravel()]
    return [*cell, [int(z) for z in structure.atomic_numbers], places]


def _element(z: int) -> list[Any]:
    """Symbol, colour and covalent radius (Å)."""
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors

    # Jmol's colours end at meitnerium, what policies may write does not.
    red, green, blue = (round(255 * float(x)) for x in jmol_colors[min(z, len(jmol_colors) - 1)])
    return [Element.from_Z(z).symbol, f"#{red:02x}{green:02x}{blue:02x}", round(float(covalent_radii[z]), 2)]


def _place(element: Element) -> list[Any]:
    """Symbol, row and column in the periodic table, the f block below."""
    if 57 <= element.Z <= 71:
        return [element.symbol, 8, element.Z - 57 + 3]
    if 89 <= element.Z <= 103:
        return [element.symbol, 9, element.Z - 89 + 3]
    return [element.symbol, element.row, element.group]
