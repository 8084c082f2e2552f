"""How the samples' distributions compare with those of real crystals: density, elements, and coverage both ways.

Coverage is CDVAE's (Xie et al., arXiv 2110.06197): a crystal is covered if its nearest neighbours among the others, one
by its sites and one by its composition, are both near enough.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from pymatgen.core import Structure

from rlgen import data, metrics
from rlgen.crystal_index import pack
from rlgen.fingerprints import COMPOSITION, MAGPIE, SITES, composition_fingerprint, site_fingerprint
from rlgen.metrics import Estimate
from rlgen.settings import MetricsConfig
from rlgen.types import UserError

#: Crystals that stand for a data set: finding the neighbours of a crystal's atoms takes 0.1 s.
LIMIT = 1000
#: Raise when fingerprints change.
VERSION = 1


@dataclass(frozen=True, eq=False)
class Real:
    """Real crystals to compare with."""

    name: str
    structures: list[Structure]

    @staticmethod
    def load(name: str) -> Real:
        """"shipped" (256 crystals of MP-20's validation split), or a data set of `rlgen.data`, with its split
        ("mp20:test") or without; of a larger one `LIMIT` crystals, always the same. Kept for the life of the process.
        """
        return _load(name)

    def fingerprints(self) -> tuple[np.ndarray, np.ndarray]:
        """As of `fingerprints`, without crystals that have none; computed once in a process."""
        return _real_fingerprints(self)


@lru_cache(maxsize=4)
def _load(name: str) -> Real:
    from rlgen.likelihood import SHIPPED

    base, _, split = name.rpartition(":")
    if split not in ("train", "val", "test") or not base:
        base, split = name, ""
    try:
        found = data.load(SHIPPED if base == "shipped" else base)
    except UserError as error:
        raise UserError(f"real={name}: {error}") from error
    if split and split not in found.splits:
        raise UserError(f"real={name}: {base} has no split {split}; it has {', '.join(found.splits)}")
    records = found.splits[split] if split else list(found)
    chosen = sorted(np.random.default_rng(0).permutation(len(records))[:LIMIT])
    return Real(name, [records[i].structure for i in chosen])


@lru_cache(maxsize=4)
def _real_fingerprints(real: Real) -> tuple[np.ndarray, np.ndarray]:
    """Kept in the cache under what the crystals are, as they are compared with in every evaluation."""
    content = b"".join(pack(data.Record("", structure)) for structure in real.structures)
    file = data.cache_dir() / "fingerprints" / f"{VERSION}-{hashlib.sha256(content).hexdigest()[:32]}.npz"
    if file.exists():
        with np.load(file) as kept:
            return kept["sites"], kept["compositions"]
    sites, compositions, _ = fingerprints(real.structures)
    if not len(sites):
        raise UserError(f"real={real.name}: no crystal in it has neighbouring atoms")
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.npz")
    np.savez(aside, sites=sites, compositions=compositions)
    aside.replace(file)
    return sites, compositions


def fingerprints(structures: Sequence[Structure], advance: Any = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of sites (n, 61) and compositions (n, 114), and which crystals (n,) they are of: those that have any."""
    sites, kept = [], []
    for i, structure in enumerate(structures):
        try:
            sites.append(site_fingerprint(structure))
            kept.append(i)
        # CrystalNN where no polyhedron closes around an atom; and where it knows no radius, as of berkelium.
        except (ValueError, RuntimeError, ZeroDivisionError, TypeError):
            pass
        if advance is not None:
            advance()
    compositions = [composition_fingerprint(structures[i]) for i in kept]
    return (
        np.array(sites).reshape(len(kept), SITES),
        np.array(compositions).reshape(len(kept), COMPOSITION),
        np.array(kept, dtype=int),
    )


@dataclass(frozen=True, eq=False)
class Coverage:
    """covered: which of the valid crystals (n,) some real one is near to; found: which real ones (M,) some of them is
    near to."""

    covered: np.ndarray
    found: np.ndarray

    def estimates(self, samples: pd.DataFrame, real: Real, rng: np.random.Generator) -> dict[str, Estimate]:
        """Precision over all samples, recall over the real crystals, and distances of distributions."""
        densities = [float(structure.density) for structure in real.structures]
        elements = [len(structure.composition) for structure in real.structures]
        return {
            "cov_precision": metrics.share(samples["covered"].to_numpy(bool), rng),
            "cov_recall": metrics.share(self.found, rng),
            "density_distance": metrics.wasserstein(samples["density"].to_numpy(float), densities, rng),
            "elements_distance": metrics.wasserstein(samples["n_elements"].to_numpy(float), elements, rng),
        }


def coverage(structures: Sequence[Structure], real: Real, settings: MetricsConfig, progress: bool = True
             ) -> tuple[Coverage, int]:
    """Coverage of n valid crystals and real ones by each other, and how many of the n have no fingerprint.

    Compositions are standardised by the real crystals. The cutoff for them, which CDVAE chose for the distances of its
    132 dimensions, grows with the square root of their number.
    """
    from rich.progress import Progress

    real_sites, real_compositions = real.fingerprints()
    with Progress(disable=not progress, transient=True) as bar:
        task = bar.add_task("comparing with real crystals", total=len(structures))
        sites, compositions, kept = fingerprints(structures, lambda: bar.advance(task))
    mean, spread = real_compositions.mean(0), real_compositions.std(0)
    spread[spread == 0] = 1
    scaled, real_scaled = (compositions - mean) / spread, (real_compositions - mean) / spread
    near = metrics.within(sites, real_sites, settings.cov_structure)
    alike = metrics.within(scaled, real_scaled, settings.cov_composition * math.sqrt(COMPOSITION / MAGPIE))
    covered = np.zeros(len(structures), dtype=bool)
    covered[kept] = near[0] & alike[0]
    return Coverage(covered, near[1] & alike[1]), len(structures) - len(kept)
