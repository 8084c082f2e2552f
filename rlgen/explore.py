"""What a chemical system may hold: `python -m rlgen.explore elements=Al-Ca-Cu n=500`.

Crystals of these elements are sampled, repeats dropped, the rest relaxed, repeats dropped again, and ranked by their
energies above the hull of known crystals. What the guards of the stability reward would not pay for comes last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlgen import energies
from rlgen.config import main, plain
from rlgen.exploring import search
from rlgen.hull import Hull
from rlgen.hull.picture import picture
from rlgen.types import UserError


def run(config: Any) -> None:
    config.energy = energies.resolve(config.energy)
    hull = Hull.load(energies.load_potential(config.energy).scale)
    elements = sorted(set(config.elements.replace(",", "-").split("-")))
    if missing := [symbol for symbol in elements if symbol not in hull.elements]:
        raise UserError(f"elements={config.elements}: {hull.scale} has no hull with {', '.join(missing)}")
    found, table = search(config, plain(config.condition) | {"elements": config.elements})
    if 2 <= len(elements) <= 3:
        sound = [i for i, doubt in enumerate(table["doubt"]) if not doubt]
        figure = picture(hull, elements, [found[i].composition for i in sound], table["e_above_hull"][sound])
        for suffix in ("svg", "png"):
            figure.savefig(Path(config.output) / f"hull.{suffix}")
        print(f"{config.output}: hull.svg, hull.png")


if __name__ == "__main__":
    main("explore", run)
