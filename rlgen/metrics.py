"""Pure functions from samples to figures: shares, diversities and means, each with a 95 % bootstrap interval.

The denominator of every share is the number of samples drawn, the undecodable ones included. A diversity is an
exp-entropy, the number of equally frequent labels that would be as spread (Hill number of order 1, Jost 2006,
doi:10.1111/j.2006.0030-1299.14714.x). It grows with the number of samples: compare it at equal numbers only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
#: Entries of a chunk of resampling weights (R, B): bounds the memory of large evaluations.
_CHUNK = 4_000_000


def roc_auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Share of pairs (positive, other) in which the positive one scores higher; ties count half, NaN: no pairs."""
    from scipy.stats import mannwhitneyu

    pairs = int(positive.sum()) * int((~positive).sum())
    return float(mannwhitneyu(score[positive], score[~positive]).statistic / pairs) if pairs else math.nan


@dataclass(frozen=True)
class Estimate:
    """A figure with the ends of its 95 % interval; NaN where there was nothing to measure."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """As `38.2 % [33.1, 43.5]`."""
        if math.isnan(self.value):
            return "–"
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def number(self, digits: int = 1) -> str:
        """As `29.1 [27.0, 31.2]`."""
        if math.isnan(self.value):
            return "–"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


NOTHING = Estimate(math.nan, math.nan, math.nan)


def share(flags: Sequence[bool] | np.ndarray, rng: np.random.Generator, *, resamples: int = RESAMPLES) -> Estimate:
    """The share of true flags (B,), p = sum(flags) / B, with its percentile bootstrap interval.

    The mean of B flags drawn again with replacement is a draw of Binomial(B, p) / B, so it is drawn as such. Where all
    flags agree the bootstrap has no width whatever B is; there the interval is the exact one (Clopper and Pearson).
    """
    flags = np.asarray(flags, dtype=bool)
    n = len(flags)
    if n == 0:
        return NOTHING
    p = float(flags.mean())
    if p in (0.0, 1.0):
        margin = 1 - ((1 - LEVEL) / 2) ** (1 / n)
        return Estimate(p, 0.0, margin) if p == 0 else Estimate(p, 1 - margin, 1.0)
    low, high = _percentiles(rng.binomial(n, p, size=resamples) / n)
    return Estimate(p, low, high)


def mean(values: Sequence[float] | np.ndarray, rng: np.random.Generator, *, resamples: int = RESAMPLES) -> Estimate:
    """The mean of the finite values (B,), in their own unit, with its percentile bootstrap interval."""
    return _bootstrap(values, np.mean, rng, resamples)


def median(values: Sequence[float] | np.ndarray, rng: np.random.Generator, *, resamples: int = RESAMPLES) -> Estimate:
    """The median of the finite values (B,), in their own unit, with its percentile bootstrap interval."""
    return _bootstrap(values, np.median, rng, resamples)


def exp_entropy(labels: Iterable[Hashable]) -> float:
    """exp(−Σ p ln p) over the labels' shares p: 1 when all are equal, C when C labels are equally frequent."""
    counts = np.array(list(Counter(labels).values()), dtype=float)
    return float(exp_entropies(counts[None])[0]) if len(counts) else math.nan


def diversity(
    labels: Sequence[Collection[Hashable]], rng: np.random.Generator, *, resamples: int = RESAMPLES
) -> Estimate:
    """Exp-entropy of all labels that B samples carry, with an interval from resampling the samples.

    labels: (B,) of each sample's labels: one space group, several elements, none where nothing is known (a sample
    without labels is left out). An entropy of resampled samples is too low, because rare labels get lost twice; the
    resampled entropies are therefore shifted by their mean error, so that the interval speaks of the reported value:
    H* − (mean(H*) − H).
    """
    labelled = [set(sample) for sample in labels if sample]
    if not labelled:
        return NOTHING
    # Sorted, because the order of a set of strings changes from process to process and would change the draws.
    columns = {label: i for i, label in enumerate(sorted(set().union(*labelled), key=str))}
    value = exp_entropy(one for sample in labelled for one in sample)
    n = len(labelled)
    if all(len(sample) == 1 for sample in labelled):
        # Resampling samples that carry one label each is a multinomial draw of the labels' counts.
        counts = Counter(next(iter(sample)) for sample in labelled)
        shares = np.array([counts[label] for label in columns]) / n
        parts = [rng.multinomial(n, shares, size=rows).astype(float) for rows in _rows(len(shares), resamples)]
    else:
        carries = np.zeros((n, len(columns)))
        for row, sample in enumerate(labelled):
            carries[row, [columns[label] for label in sample]] = 1
        parts = [_counts(draws) @ carries for draws in _draws(n, resamples, rng)]
    entropies = np.log(np.concatenate([exp_entropies(part) for part in parts]))
    low, high = _percentiles(np.exp(entropies - entropies.mean() + math.log(value)))
    return Estimate(value, max(1.0, low), high)


def distinct(labels: Sequence[Hashable | None], rng: np.random.Generator, *, resamples: int = RESAMPLES) -> Estimate:
    """How many different labels B samples carry, per 1,000 samples; None is no label, but a sample all the same.

    As with a diversity, the interval is shifted by what resampling loses. It falls with the number of samples.
    """
    n = len(labels)
    if n == 0:
        return NOTHING
    counts = Counter(labels)
    unlabelled = counts.pop(None, 0)
    shares = np.array([*counts.values(), unlabelled]) / n
    parts = [rng.multinomial(n, shares, size=rows)[:, :-1] for rows in _rows(len(shares), resamples)]
    drawn = np.concatenate([(part > 0).sum(axis=1) for part in parts]).astype(float)
    value = float(len(counts))
    low, high = _percentiles(drawn - drawn.mean() + value)
    return Estimate(1000 * value / n, 1000 * max(0.0, low) / n, min(1000.0, 1000 * high / n))


def wasserstein(
    values: Sequence[float] | np.ndarray,
    real: Sequence[float] | np.ndarray,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Earth mover's distance between the finite values (B,) and real ones (M,), in their own unit: ∫ |F − F_real| dx.

    The interval is from resampling the values, and shifted by the distance that resampling adds.
    """
    finite = np.asarray(values, dtype=float)
    finite, real = np.sort(finite[np.isfinite(finite)]), np.sort(np.asarray(real, dtype=float))
    if len(finite) == 0 or len(real) == 0:
        return NOTHING
    grid = np.sort(np.concatenate([finite, real]))
    below = np.searchsorted(finite, grid[:-1], side="right")
    real_below = np.searchsorted(real, grid[:-1], side="right") / len(real)

    def distance(counts: np.ndarray) -> np.ndarray:
        """(R,) of how often each of the sorted values was drawn, (R, B)."""
        reached = np.pad(counts.cumsum(axis=1), ((0, 0), (1, 0)))[:, below] / len(finite)
        return np.abs(reached - real_below) @ np.diff(grid)

    value = float(distance(np.ones((1, len(finite))))[0])
    sizes = _rows(len(grid), resamples)
    drawn = np.concatenate(
        [distance(_counts(rng.integers(len(finite), size=(rows, len(finite))))) for rows in sizes]
    )
    low, high = _percentiles(drawn - drawn.mean() + value)
    return Estimate(value, max(0.0, low), high)


def within(a: np.ndarray, b: np.ndarray, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether each row of a (B, D) has a row of b (M, D) within the Euclidean cutoff, and the other way round."""
    from scipy.spatial.distance import cdist

    near_a, near_b = np.zeros(len(a), dtype=bool), np.zeros(len(b), dtype=bool)
    for start in range(0, len(a), 1000):
        close = cdist(a[start : start + 1000], b) <= cutoff
        near_a[start : start + 1000] = close.any(axis=1)
        near_b |= close.any(axis=0)
    return near_a, near_b


def exp_entropies(counts: np.ndarray) -> np.ndarray:
    """Exp-entropy (R,) of counts (R, C); a count of 0 adds nothing."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.exp(-(shares * logs).sum(axis=1))


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _rows(width: int, resamples: int) -> list[int]:
    """Resamples cut into chunks of at most `_CHUNK` entries of this width."""
    size = max(1, _CHUNK // width)
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _counts(draws: np.ndarray) -> np.ndarray:
    """How often each of n samples was drawn, (R, n), from draws (R, n)."""
    rows, n = draws.shape
    flat = (draws + n * np.arange(rows)[:, None]).ravel()
    return np.bincount(flat, minlength=rows * n).reshape(rows, n).astype(float)


def _draws(n: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Chunks (R, n) of n samples drawn with replacement, by position."""
    for rows in _rows(n, resamples):
        yield rng.integers(n, size=(rows, n))


def _bootstrap(
    values: Sequence[float] | np.ndarray, statistic: Callable[..., np.ndarray], rng: np.random.Generator, resamples: int
) -> Estimate:
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if len(finite) == 0:
        return NOTHING
    drawn = np.concatenate([statistic(finite[draws], axis=1) for draws in _draws(len(finite), resamples, rng)])
    return Estimate(float(statistic(finite)), *_percentiles(drawn))
