"""Evaluations side by side: a table for the terminal, Markdown, plain data for JSON, and (`page`) one in HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rlgen.metrics import NOTHING, Estimate

if TYPE_CHECKING:
    from rich.table import Table

    from rlgen.evaluation import Evaluation

#: What the report shows, in order: key -> (label, kind); kinds: share, number (spread or size), fine (three digits).
#: {…} is a number of the definitions that judged.
ROWS: dict[str, tuple[str, str]] = {
    "valid": ("valid", "share"),
    "apart": ("atoms {min_distance:g} Å apart", "share"),
    "radii_apart": ("atoms {radii:g} of their radii apart", "share"),
    "neutral": ("charge neutral (SMACT, {oxidation_states})", "share"),
    "unique": ("unique", "share"),
    "novel": ("novel", "share"),
    "metastable": ("metastable (≤ {metastable:g} eV/atom)", "share"),
    "stable": ("stable (≤ {stable:g} eV/atom)", "share"),
    "sun": ("S.U.N. (≤ {metastable:g} eV/atom)", "share"),
    "sun_strict": ("S.U.N. (≤ {stable:g} eV/atom)", "share"),
    "msun": ("metastable S.U.N., without the stable", "share"),
    "e_above_hull_written": ("energy above hull as written, median (eV/atom)", "fine"),
    "e_above_hull": ("energy above hull relaxed, median (eV/atom)", "fine"),
    "displacement": ("RMSD to the relaxed crystal, mean (Å)", "fine"),
    "space_groups": ("space groups, exp-entropy", "number"),
    "elements": ("elements, exp-entropy", "number"),
    "sizes": ("sizes of cells, exp-entropy", "number"),
    "prototypes": ("prototypes, exp-entropy", "number"),
    "distinct_prototypes": ("distinct prototypes per 1,000 samples", "number"),
    "sun_prototypes": ("distinct S.U.N. prototypes per 1,000 samples", "number"),
    "n_atoms": ("atoms per primitive cell, mean", "number"),
    "density_distance": ("density, distance from real crystals (g/cm³)", "fine"),
    "elements_distance": ("number of elements, distance from real crystals", "fine"),
    "cov_precision": ("covered by real crystals (COV-P)", "share"),
    "cov_recall": ("real crystals covered (COV-R)", "share"),
}


def table(evaluations: Mapping[str, Evaluation]) -> Table:
    """One column for each evaluation, as in {"pretrained": …, "fine-tuned": …}, and below what judged and how."""
    from rich.table import Table

    report = Table(title="Evaluation", caption="\n".join(notes(evaluations)), caption_justify="left")
    report.add_column("")
    for name in evaluations:
        report.add_column(name, justify="right")
    for label, cells in _cells(evaluations):
        report.add_row(label, *cells)
    return report


def as_markdown(evaluations: Mapping[str, Evaluation]) -> str:
    """The same table and notes as Markdown."""
    lines = ["| | " + " | ".join(evaluations) + " |", "|---|" + "---:|" * len(evaluations)]
    lines += [f"| {label} | " + " | ".join(cells) + " |" for label, cells in _cells(evaluations)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(evaluations))]) + "\n"


def as_dict(evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Plain data for JSON: summary, failures and notes of each evaluation; null where nothing was measured."""

    def plain(estimate: Estimate) -> dict[str, float | None]:
        return {key: None if math.isnan(value) else value for key, value in asdict(estimate).items()}

    return {
        name: {
            "summary": {key: plain(estimate) for key, estimate in one.summary.items()},
            "failures": one.failures,
            "notes": one.notes,
        }
        for name, one in evaluations.items()
    }


def notes(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Lines that a table must not be read without."""
    sizes = {name: one.notes["samples"] for name, one in evaluations.items()}
    lines = [
        "shares are of all samples (" + ", ".join(f"{name}: {n}" for name, n in sizes.items()) + "), the undecodable "
        "included; energies, diversity and size are of the valid ones; [ ] are 95 % bootstrap intervals",
    ]
    if len(set(sizes.values())) > 1:
        lines.append("diversities grow with the number of samples: these are not of equal numbers")
    lines += _each("energies", evaluations, _energy_note)
    lines += _each("novel", evaluations, lambda one: f"not found by {one.notes['novelty']}")
    lines += _each("unique", evaluations, lambda one: f"the first of those that {one.notes['unique']} takes for one")
    if any("real" in one.notes for one in evaluations.values()):
        lines += _each("real crystals", evaluations, _real_note)
    lines += _each("lost", evaluations, lambda one: ", ".join(f"{n} × {k}" for k, n in one.failures.items()) or "none")
    return lines


def _energy_note(one: Evaluation) -> str:
    how = "as written, not relaxed"
    if one.notes["relaxed"]:
        how = f"relaxed, fmax {one.notes['fmax']:g} eV/Å, at most {one.notes['steps']} steps"
    return f"{one.notes['scale']} and a hull of {one.notes['hull']}; crystals {how}"


def _real_note(one: Evaluation) -> str:
    if "real" not in one.notes:
        return "none"
    without = one.notes["without_fingerprint"]
    lost = f"; {without} samples cannot be compared, as no neighbours of their atoms are found" if without else ""
    return f"{one.notes['real_size']:,} of {one.notes['real']}; COV-R is a share of these{lost}"


def _each(what: str, evaluations: Mapping[str, Evaluation], say: Callable[[Evaluation], str]) -> list[str]:
    """One line if all evaluations say the same, else one for each."""
    said = {name: say(one) for name, one in evaluations.items()}
    if len(set(said.values())) == 1:
        return [f"{what}: {next(iter(said.values()))}"]
    return [f"{what} ({name}): {text}" for name, text in said.items()]


#: How an estimate of each kind is written.
SHOWN: dict[str, Callable[[Estimate], str]] = {
    "share": Estimate.percent,
    "number": Estimate.number,
    "fine": lambda estimate: estimate.number(3),
}


def rows(evaluations: Mapping[str, Evaluation]) -> Iterator[tuple[str, str, list[Estimate]]]:
    """Label, kind and estimates of every figure that any of the evaluations has."""
    definitions = [one.notes["definitions"] for one in evaluations.values()]
    for key, (label, kind) in ROWS.items():
        if any(key in one.summary for one in evaluations.values()):
            shown = " / ".join(dict.fromkeys(label.format(**numbers) for numbers in definitions))
            yield shown, kind, [one.summary.get(key, NOTHING) for one in evaluations.values()]


def _cells(evaluations: Mapping[str, Evaluation]) -> Iterator[tuple[str, list[str]]]:
    for label, kind, estimates in rows(evaluations):
        yield label, [SHOWN[kind](estimate) for estimate in estimates]
