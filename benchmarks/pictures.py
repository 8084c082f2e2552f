"""Draws what each representation writes for one crystal: `python benchmarks/pictures.py`, into docs/pictures/."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch
from pymatgen.core import Lattice, Structure

from policies.representations import REPRESENTATIONS, make
from policies.representations.base import Representation
from rlgen.spacegroup import from_spacegroup

OUTPUT = Path(__file__).parent.parent / "docs" / "pictures"
#: Colour of each kind of token; what has none of its own is grey.
COLOURS = {"space_group": "#8fb8de", "n_atoms": "#8fb8de", "element": "#f2b880", "orbit": "#b8a1d9", "hall": "#8fb8de",
           "multiplicity": "#b8a1d9", "count": "#f7d9b0", "length": "#9fd3a8", "hundredth": "#9fd3a8",
           "degree": "#c9e4a5", "twentieth": "#c9e4a5", "coordinate": "#f2e394"}
PER_LINE = 14


def kind(representation: Representation, token: int) -> str:
    return next(name for name, first in reversed(representation.first.items()) if token >= first)


def draw(representation: Representation, crystal: Structure, title: str) -> None:
    ids = representation.encode(crystal)
    lines = -(-len(ids) // PER_LINE)
    figure, axes = plt.subplots(figsize=(9, 0.55 + 0.36 * lines))
    for i, token in enumerate(ids):
        row, column = divmod(i, PER_LINE)
        text = representation.vocabulary[token].replace("\n", "↵").replace(" ", "␣").replace("multiplicity", "m = ")
        colour = COLOURS.get(kind(representation, token), "#e6e6e6")
        axes.add_patch(FancyBboxPatch((column + 0.06, -row - 0.4), 0.88, 0.78, boxstyle="round,pad=0,rounding_size=0.1",
                                      facecolor=colour, edgecolor="#555555", linewidth=0.5))
        axes.text(column + 0.5, -row, text, ha="center", va="center", fontsize=6.5)
    axes.set(xlim=(0, PER_LINE), ylim=(-lines + 0.4, 0.6))
    axes.set_title(f"{representation.name}: {title}, {len(ids)} tokens", loc="left", fontsize=9)
    axes.axis("off")
    OUTPUT.mkdir(exist_ok=True)
    figure.savefig(OUTPUT / f"{representation.name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    plt.rcParams["svg.hashsalt"] = "rlgen"  # the same file from every run
    plt.rcParams["svg.fonttype"] = "none"
    rutile = from_spacegroup("P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"],
                              [[0, 0, 0], [0.3053, 0.3053, 0]])
    for name in REPRESENTATIONS:
        draw(make(name), rutile, "rutile, TiO₂")


if __name__ == "__main__":
    main()
