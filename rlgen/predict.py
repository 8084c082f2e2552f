"""Structures of a formula: `python -m rlgen.predict formula=SrTiO3 n=20`.

The policy writes crystals of that formula, in cells of any multiple of it unless `condition.n_atoms` says which; they
are relaxed, and ranked by energy. `benchmarks/csp.py` measures how often the true structure is among them.
"""

from __future__ import annotations

from typing import Any

from rlgen.config import main, plain
from rlgen.exploring import search


def run(config: Any) -> None:
    search(config, plain(config.condition) | {"formula": config.formula})


if __name__ == "__main__":
    main("predict", run)
