"""Which crystals are known already: by protostructure label, or by StructureMatcher against a data set's structures."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pymatgen.core import Structure

from rlgen.protostructure import MIRRORED, UNLABELLED
from rlgen.types import UserError

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher

#: Å. At 0.1, 99.5 % of MP-20 crystals keep their label under 0.01 Å of noise (at 0.05: 98.5 %, at 0.01: 3 %), and 99 %
#: have the listed space group. Much above 0.2, moyo's search has been seen not to return.
SYMPREC = 0.1
#: A label is looked up at both tolerances, and the shipped labels were made at both. Measured against StructureMatcher
#: on MP-20 (val in train), 0.2 besides 0.1 finds 53 instead of 19 of the 129 known crystals and takes 58 instead of 56
#: new ones for known; under 0.05 Å of noise 91 % instead of 54 % of known crystals stay known.
LOOKUP_SYMPRECS = (SYMPREC, 0.2)
#: The tolerances the field uses for "the same crystal" (Xie et al., arXiv 2110.06197, use 0.3, 0.5, 10; these are
#: StructureMatcher's own defaults).
LTOL, STOL, ANGLE_TOL = 0.2, 0.3, 5.0
_SHIPPED = Path(__file__).parent / "assets" / "novelty_mp20.parquet"
_SPLITS = ("train", "val", "test", "all")

# moyo explains on every supercell that it returns the primitive cell's orbits, which is what a label needs.
logging.getLogger("moyo").setLevel(logging.ERROR)


def safe_symprec(lattice: np.ndarray, symprec: float) -> float:
    """The tolerance (Å), tightened for a cell (3, 3; Å) in which it would let a short vector be added to a long one.

    Adding a to c lengthens it by up to a²/2c only. Where that is within the tolerance, moyo finds so many candidates
    for rotations that it fills the memory (seen with a = 1.3, c = 51 and 0.2 Å).
    """
    import spglib

    niggli = spglib.niggli_reduce(lattice, eps=1e-5)
    lengths = np.linalg.norm(lattice if niggli is None else niggli, axis=1)
    return min(symprec, float(lengths.min() ** 2 / (2 * lengths.max())))


def protostructure_label(structure: Structure, symprec: float = SYMPREC) -> str:
    """Formula, Pearson symbol, space group, occupied Wyckoff positions, and elements, as in "AB_cF8_225_a_b:Cl-Na".

    The same for every description of one crystal: cell, origin, setting, mirror image. AFLOW's labels, canonical over
    the choices of origin (Goodall et al., Sci. Adv. 8, eabn4117 (2022)), except that of two enantiomorphic space
    groups the label names one, as a crystal and its mirror image have the same energy and count as one. Two polymorphs
    with the same positions occupied share a label. Never raises: "NaCl|unlabelled" where symmetry cannot be found.
    """
    # moyo may fail at one tolerance and succeed at a tighter one. Its errors are ValueError, and pyo3's PanicException,
    # a BaseException, on degenerate cells.
    symprec = safe_symprec(structure.lattice.matrix, symprec)
    for tolerance in (symprec, symprec / 10):
        try:
            label = _aflow_label(structure, tolerance)
            if int(label.split("_")[2]) in MIRRORED:
                mirrored = Structure(-structure.lattice.matrix, structure.species, structure.frac_coords)
                label = _aflow_label(mirrored, tolerance)
            return label
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
    return structure.composition.element_composition.reduced_formula + UNLABELLED


def _aflow_label(structure: Structure, symprec: float) -> str:
    from pymatgen.analysis.prototypes import get_protostructure_label_from_moyopy

    return str(get_protostructure_label_from_moyopy(structure, raise_errors=True, symprec=symprec))


def formula_key(numbers: Sequence[int] | np.ndarray) -> tuple[tuple[int, int], ...]:
    """The reduced formula of atomic numbers (N,) as ((Z, count), …): a bucket that equal crystals always share."""
    elements, counts = np.unique(np.asarray(numbers), return_counts=True)
    counts //= np.gcd.reduce(counts)
    return tuple(zip(elements.tolist(), counts.tolist(), strict=True))


class Matcher:
    """StructureMatcher at the field's tolerances, on cells that are reduced once instead of at every comparison.

    A comparison takes 2.3 ms instead of 7. On rare pairs StructureMatcher does not return for minutes, inside compiled
    code where signals do not reach it: only ending the process helps, which `RewardPool` does.
    """

    def __init__(self) -> None:
        from pymatgen.analysis.structure_matcher import ElementComparator, StructureMatcher

        self._matcher: StructureMatcher = StructureMatcher(
            ltol=LTOL, stol=STOL, angle_tol=ANGLE_TOL, comparator=ElementComparator()
        )

    def reduce(self, structure: Structure) -> Structure:
        """The primitive, Niggli-reduced cell."""
        primitive = structure.get_primitive_structure()
        return primitive.get_reduced_structure(reduction_algo="niggli")

    def same(self, a: Structure, b: Structure) -> bool:
        """Whether two reduced cells are one crystal, whatever their volume."""
        return len(a) == len(b) and self._matcher.fit(a, b, skip_structure_reduction=True)


def duplicate_groups(structures: Sequence[Structure], *, matcher: bool = True) -> np.ndarray:
    """Group index (B,) of each crystal, counted from 0 by first appearance; crystals of one group are duplicates.

    matcher: a crystal joins the first group whose first member StructureMatcher takes for the same crystal. Otherwise
    groups are equal labels, which is faster, and takes for different what differs by a small distortion.
    """
    groups = np.zeros(len(structures), dtype=np.int64)
    if not matcher:
        index: dict[str, int] = {}
        for i, structure in enumerate(structures):
            groups[i] = index.setdefault(protostructure_label(structure), len(index))
        return groups
    compare = Matcher()
    buckets: dict[tuple, list[int]] = defaultdict(list)
    for i, structure in enumerate(structures):
        buckets[formula_key(structure.atomic_numbers)].append(i)
    first = np.arange(len(structures))
    for members in buckets.values():
        if len(members) == 1:
            continue
        heads: list[tuple[int, Structure]] = []
        for i in members:
            cell = compare.reduce(structures[i])
            head = next((j for j, other in heads if compare.same(other, cell)), None)
            if head is None:
                heads.append((i, cell))
            else:
                first[i] = head
    return np.unique(first, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True, eq=False)
class Reference:
    """Known crystals. method: how a crystal is compared with them, in words, for reports.

    labels: of every known crystal, where only labels are kept. records: the known crystals themselves, by formula.
    """

    name: str
    method: str
    size: int
    labels: frozenset[str] = frozenset()
    records: dict[tuple, list] | None = None
    _reduced: dict[tuple, list[Structure]] = field(default_factory=dict, repr=False)

    @staticmethod
    def load(name: str) -> Reference:
        """Load "shipped:train", "shipped:all", or a data set of `rlgen.data`, with its split ("mp20:train") or without.

        A data set named without a split means all of it. Kept for the life of the process.
        """
        return _load(str(name))

    def contains(self, structure: Structure) -> bool:
        """Whether the crystal is known. One that cannot be told (see `known`) cannot be shown to be new: True."""
        return self.known(structure) is not False

    def known(self, structure: Structure) -> bool | None:
        """Whether the crystal is known; None if there are only labels and its symmetry cannot be determined."""
        if self.records is None:
            labels = []
            for symprec in LOOKUP_SYMPRECS:
                labels.append(protostructure_label(structure, symprec))
                if labels[-1] in self.labels:
                    return True
            return None if all(label.endswith(UNLABELLED) for label in labels) else False
        key = formula_key(structure.atomic_numbers)
        if key not in self.records:
            return False
        compare = _matcher()
        if key not in self._reduced:
            self._reduced[key] = [compare.reduce(record.structure) for record in self.records[key]]
        cell = compare.reduce(structure)
        return any(compare.same(known, cell) for known in self._reduced[key])


@lru_cache(maxsize=1)
def _matcher() -> Matcher:
    return Matcher()


@lru_cache(maxsize=8)
def _load(name: str) -> Reference:
    base, _, split = name.rpartition(":")
    if split not in _SPLITS or not base:
        base, split = name, "all"
    if base == "shipped":
        return _load_shipped(name, split)
    from rlgen.data import load

    dataset = load(base)
    if split != "all" and split not in dataset.splits:
        raise UserError(f"reference {name!r}: {base} has no split {split}; it has {', '.join(dataset.splits)}")
    records: dict[tuple, list] = defaultdict(list)
    for record in dataset if split == "all" else dataset.splits[split]:
        records[formula_key(record.numbers)].append(record)
    size = sum(map(len, records.values()))
    method = f"StructureMatcher(ltol={LTOL}, stol={STOL}, angle_tol={ANGLE_TOL:g}) against {size:,} crystals of {name}"
    return Reference(name, method, size, records=dict(records))


def _load_shipped(name: str, split: str) -> Reference:
    import pyarrow.parquet as pq

    if split not in ("train", "all"):
        raise UserError(f"reference {name!r}: there are shipped:train and shipped:all")
    table = pq.read_table(_SHIPPED, filters=[("split", "==", "train")] if split == "train" else None, columns=["label"])
    labels = frozenset(table["label"].to_pylist())
    what = "MP-20's training set" if split == "train" else "MP-20"
    tolerances = " or ".join(map(str, LOOKUP_SYMPRECS))
    method = f"protostructure labels (formula, space group, Wyckoff positions; symprec {tolerances} Å) of {what}"
    return Reference(name, method, len(labels), labels=labels)
