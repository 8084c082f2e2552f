"""From judged samples to the figures of a report, and to what was lost and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from rlgen import metrics
from rlgen.metrics import Estimate
from rlgen.settings import MetricsConfig

#: What counts as what, as the field defines it.
FIELD = MetricsConfig()


def flags(samples: pd.DataFrame, settings: MetricsConfig = FIELD) -> dict[str, np.ndarray]:
    """Whether each judged sample (B,) counts in each share."""
    names = ("valid", "apart", "radii_apart", "neutral", "unique", "novel")
    found = {name: samples[name].to_numpy(bool) for name in names}
    above = samples["e_above_hull"].to_numpy(float)
    metastable, stable = above <= settings.metastable, above <= settings.stable  # NaN is neither
    new = found["unique"] & found["novel"]
    return found | {
        "metastable": metastable,
        "stable": stable,
        "sun": metastable & new,
        "sun_strict": stable & new,
        "msun": metastable & ~stable & new,
    }


def summarise(samples: pd.DataFrame, seed: int = 0, settings: MetricsConfig = FIELD) -> dict[str, Estimate]:
    """Estimates for `ROWS` from judged samples. Diversity and energies are of the valid samples, shares of all."""
    rng = np.random.default_rng(seed)
    counted = flags(samples, settings)
    summary = {name: metrics.share(values, rng) for name, values in counted.items()}
    for name in ("e_above_hull_written", "e_above_hull"):
        summary[name] = metrics.median(samples[name].to_numpy(float), rng)
    summary["displacement"] = metrics.mean(samples["displacement"].to_numpy(float), rng)
    elements = [tuple(one.split("-")) if isinstance(one, str) else () for one in samples["chemical_system"]]
    summary["space_groups"] = metrics.diversity(_labels(samples["space_group"]), rng)
    summary["elements"] = metrics.diversity(elements, rng)
    summary["sizes"] = metrics.diversity(_labels(samples["n_atoms"]), rng)
    summary["prototypes"] = metrics.diversity(_labels(samples["prototype"]), rng)
    prototypes = [None if pd.isna(label) else label for label in samples["prototype"]]
    summary["distinct_prototypes"] = metrics.distinct(prototypes, rng)
    summary["sun_prototypes"] = metrics.distinct(
        [label if sun else None for label, sun in zip(prototypes, counted["sun"], strict=True)], rng
    )
    summary["n_atoms"] = metrics.mean(samples["n_atoms"].to_numpy(float), rng)
    return summary


def failures(samples: pd.DataFrame) -> dict[str, int]:
    """Samples without a full judgement by kind, the most frequent first: "invalid: geometry", "stability: overlap"."""
    kinds: Counter[str] = Counter()
    for status, reason in zip(samples["status"], samples["reason"], strict=True):
        if status == "invalid":
            kinds[f"invalid: {kind(reason)}"] += 1
        elif status == "failed":
            lost = [one.partition(": ") for one in reason.split("; ")]  # several rewards may have failed
            for reward, _, why in lost:
                if reward == "displacement" and any(other == "stability" for other, _, _ in lost):
                    continue  # what could not be relaxed is told once
                kinds[f"{reward}: {kind(why)}"] += 1
    return dict(kinds.most_common())


def kind(reason: str) -> str:
    """A reason without its details: what stands before the first colon, number or comma."""
    return re.split(r"[:,]|\s*-?\d", reason)[0].strip() or "other"


def _labels(column: Iterable[Any]) -> list[tuple[Any, ...]]:
    """One label for each sample, none where it is missing."""
    return [() if pd.isna(label) else (label,) for label in column]
