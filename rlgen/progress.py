"""What a run shows while it goes: a bar with the rewards, scalars, samples, and pictures of the best crystals."""

from __future__ import annotations

import numpy as np
from pymatgen.core import Structure
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlgen import tracking
from rlgen.experience import Experience
from rlgen.tracking import Run


def log_step(log: Run, step: int, experience: Experience, stats: dict[str, float]) -> None:
    """Scalars and every sample of a step; every tenth step also a picture of the crystal that earned most."""
    log.log_scalars(step, experience.scalars | stats)
    log.log_samples(step, experience.crystals, tracking.breakdown_columns(experience.breakdown))
    best = experience.crystals[int(np.argmax(experience.earned))]
    if step % 10 == 0 and isinstance(best, Structure):
        log.log_figure(step, "crystals/best", tracking.crystal_picture(best))


def describe(experience: Experience) -> str:
    """The rewards of a step, short enough for a progress bar."""
    s = experience.scalars
    parts = [f"reward {s['reward/learned']:.2f}"]
    parts += [f"{name} {s[f'reward/{name}']:.2f}" for name in experience.breakdown.names]
    return " ".join([*parts, f"valid {s['sample/valid']:.0%}"])


def progress_bar() -> Progress:
    return Progress(BarColumn(bar_width=10), TextColumn("{task.completed}/{task.total} {task.description}"),
                    TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
