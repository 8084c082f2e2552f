"""Policies side by side, as `rlgen.evaluate` judged them: a table, and a picture of S.U.N. against diversity.

`python benchmarks/judged.py pretrained=before "beta 0.15=a" "two seeds=b_0,b_1" n=512 output=tradeoff.svg`:
names, and after each the `output=` of one evaluation or of several, whose mean is shown, ± its standard error. The
first is what the others are compared with. n: count the first so many samples of each only; of more samples more
prototypes are distinct, so that what is compared must be of equally many. Thresholds are the default ones.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlgen.summary import summarise

#: Name, figure of `rlgen.evaluate`, whether it is a share.
FIGURES = (
    ("valid", "valid", True), ("unique", "unique", True), ("novel", "novel", True), ("metastable", "metastable", True),
    ("S.U.N. (≤ 0.1 eV/atom)", "sun", True), ("S.U.N. (≤ 0 eV/atom)", "sun_strict", True),
    ("S.U.N. prototypes per 1,000", "sun_prototypes", False), ("space groups, exp-entropy", "space_groups", False),
    ("prototypes, exp-entropy", "prototypes", False), ("elements, exp-entropy", "elements", False),
    ("atoms per primitive cell", "n_atoms", False),
)  # fmt: skip
#: What must not fall for S.U.N. to rise.
DIVERSITIES = {"space_groups": "space groups", "prototypes": "prototypes", "elements": "elements",
               "n_atoms": "cell size"}


def read(folder: Path | str, n: int = 0) -> dict[str, float]:
    """The figures of the first n samples, or all, of an evaluation of one input."""
    path = Path(folder) / "judged_0.parquet"
    if not path.is_file():
        raise SystemExit(f"{path} is not there: give the output= of rlgen.evaluate")
    verdicts = pd.read_parquet(path)
    found = summarise(verdicts.head(n or len(verdicts)))
    return {name: found[name].value for _, name, _ in FIGURES}


def least(found: dict[str, float], before: dict[str, float]) -> tuple[float, str]:
    """The least of the four diversities as a share of what it was before, and which it is."""
    return min((found[key] / before[key], name) for key, name in DIVERSITIES.items())


def over_seeds(values: Sequence[Any], share: bool, digits: int) -> str:
    """Mean over seeds, ± its standard error; "first → last" where a value is a pair of these."""
    if isinstance(values[0], list):
        return " → ".join(over_seeds(part, share, digits) for part in zip(*values, strict=True))
    numbers = np.array([np.nan if value is None else value for value in values], dtype=float) * (100 if share else 1)
    if np.isnan(numbers).all():
        return "–"
    text = f"{np.mean(numbers):.{digits}f}"
    if len(numbers) > 1:
        text += f" ± {np.std(numbers, ddof=1) / len(numbers) ** 0.5:.{digits}f}"
    return text + (" %" if share else "")


def markdown(title: str, columns: Sequence[str], rows: dict[str, Sequence[str]]) -> str:
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items())])


def table(title: str, judged: dict[str, list[dict[str, float]]]) -> str:
    """A column for each name, with the least of its diversities at the end."""
    (before, *_), *_ = judged.values()
    rows = {name: [over_seeds([one[key] for one in found], share, 1) for found in judged.values()]
            for name, key, share in FIGURES}
    kept = [[least(one, before) for one in found] for found in judged.values()]
    rows["least diversity, as a share of before"] = [
        f"{np.mean([share for share, _ in found]):.2f} ({', '.join(sorted({name for _, name in found}))})"
        if k else "1" for k, found in enumerate(kept)]
    return markdown(title, list(judged), rows)


def draw(judged: dict[str, list[dict[str, float]]], file: Path) -> None:
    """S.U.N. against the least diversity; a point for each name, with the standard deviation of its several policies.
    """
    from matplotlib.figure import Figure

    (before, *_), *_ = judged.values()
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, found in judged.items():
        diversity = [least(one, before)[0] for one in found]
        sun = [100 * one["sun"] for one in found]
        axes.errorbar(np.mean(diversity), np.mean(sun), xerr=np.std(diversity), yerr=np.std(sun), fmt="o", label=name)
    axes.axvline(0.9, color="0.7", linewidth=0.8, linestyle="--")
    axes.set(xlabel=f"least of {', '.join(DIVERSITIES.values())}; as a share of before", ylabel="S.U.N. (%)")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(file)


def main() -> None:
    if not sys.argv[1:] or not all("=" in argument for argument in sys.argv[1:]):
        raise SystemExit(__doc__)
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    n, output = int(given.pop("n", 0)), given.pop("output", None)
    judged = {name: [read(folder, n) for folder in folders.split(",")] for name, folders in given.items()}
    print(table(f"{n or 'all'} samples each", judged))
    if output:
        draw(judged, Path(output))


if __name__ == "__main__":
    main()
