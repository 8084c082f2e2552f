"""Which crystals are known already: by protostructure label, or by StructureMatcher against an index of crystals."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from pymatgen.analysis.structure_matcher import ElementComparator, StructureMatcher
from pymatgen.core import Structure

from rlgen.crystal_index import SUFFIX, CrystalIndex, formula_key, unpack
from rlgen.protostructure import MIRRORED, UNLABELLED, library
from rlgen.types import UserError

#: Å. At 0.1, 99.5 % of MP-20 crystals keep their label under 0.01 Å of noise (at 0.05: 98.5 %, at 0.01: 3 %), and 99 %
#: have the listed space group. Much above 0.2, moyo's search has been seen not to return.
SYMPREC = 0.1
#: A label is looked up at both tolerances, and the shipped labels were made at both. Measured against StructureMatcher
#: on MP-20 (val in train), 0.2 besides 0.1 finds 53 instead of 19 of the 129 known crystals and takes 58 instead of 56
#: new ones for known; under 0.05 Å of noise 91 % instead of 54 % of known crystals stay known.
LOOKUP_SYMPRECS = (SYMPREC, 0.2)
#: Reduced cells of known crystals that a process keeps (each takes some 10 kB).
_CELLS = 1 << 13
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
    return str(library().get_protostructure_label_from_moyopy(structure, raise_errors=True, symprec=symprec))


@dataclass(frozen=True)
class Tolerance:
    """How alike two crystals must be to be one: in lengths (a share), in positions (a share of the cube root of the
    volume per atom), and in angles (degrees).

    The defaults are StructureMatcher's own, which MatterGen (arXiv 2312.03687) and LeMat-GenBench (arXiv 2512.04562)
    use; CDVAE (arXiv 2110.06197) takes 0.3, 0.5, 10 to compare a crystal with its reconstruction.
    """

    ltol: float = 0.2
    stol: float = 0.3
    angle_tol: float = 5.0

    def __str__(self) -> str:
        return f"StructureMatcher(ltol={self.ltol:g}, stol={self.stol:g}, angle_tol={self.angle_tol:g})"


#: What the field means by the same crystal.
FIELD = Tolerance()


class Matcher:
    """StructureMatcher on cells that are reduced once instead of at every comparison; the verdicts are the same.

    A comparison takes 2.3 ms instead of 7. On rare pairs StructureMatcher does not return for minutes, inside compiled
    code where signals do not reach it: only ending the process helps, which `RewardPool` does.
    """

    def __init__(self, tolerance: Tolerance = FIELD):
        self._matcher = StructureMatcher(
            ltol=tolerance.ltol, stol=tolerance.stol, angle_tol=tolerance.angle_tol, comparator=ElementComparator()
        )

    @staticmethod
    def reduce(structure: Structure) -> Structure:
        """The Niggli-reduced and then primitive cell: the steps that StructureMatcher takes, in its order."""
        return structure.get_reduced_structure(reduction_algo="niggli").get_primitive_structure()

    def same(self, a: Structure, b: Structure) -> bool:
        """Whether two reduced cells are one crystal, whatever their volume."""
        return len(a) == len(b) and self._matcher.fit(a, b, skip_structure_reduction=True)


@lru_cache(maxsize=_CELLS)
def _known_cell(crystal: bytes) -> Structure:
    """The reduced cell of a row of an index."""
    return Matcher.reduce(unpack(crystal))


def duplicate_groups(
    structures: Sequence[Structure], *, matcher: bool = True, tolerance: Tolerance = FIELD
) -> np.ndarray:
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
    compare = Matcher(tolerance)
    buckets: dict[bytes, list[int]] = defaultdict(list)
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

    labels: of every known crystal, where only labels are kept. index: the known crystals themselves, which are compared
    with `tolerance`.
    """

    name: str
    size: int
    what: str
    labels: frozenset[str] = frozenset()
    index: CrystalIndex | None = None
    tolerance: Tolerance = FIELD

    @staticmethod
    def load(name: str, tolerance: Tolerance = FIELD) -> Reference:
        """Load "shipped:train", "shipped:all", an index that `python -m rlgen.build_reference` wrote, or a data set of
        `rlgen.data`, with its split ("mp20:train") or without.

        A data set named without a split means all of it. Kept for the life of the process.
        """
        return _load(str(name), tolerance)

    @property
    def method(self) -> str:
        """How a crystal is compared, in words."""
        return self.what if self.index is None else f"{self.tolerance} against {self.size:,} crystals of {self.what}"

    def contains(self, structure: Structure) -> bool:
        """Whether the crystal is known. One that cannot be told (see `known`) cannot be shown to be new: True."""
        return self.known(structure) is not False

    def known(self, structure: Structure) -> bool | None:
        """Whether the crystal is known; None if there are only labels and its symmetry cannot be determined."""
        if self.index is not None:
            return self._matched(structure, self.index)
        labels = []
        for symprec in LOOKUP_SYMPRECS:
            labels.append(protostructure_label(structure, symprec))
            if labels[-1] in self.labels:
                return True
        return None if all(label.endswith(UNLABELLED) for label in labels) else False

    def _matched(self, structure: Structure, index: CrystalIndex) -> bool:
        candidates = index.of_formula(formula_key(structure.atomic_numbers))
        if not candidates:
            return False
        cell, compare = Matcher.reduce(structure), _matcher(self.tolerance)
        # A primitive cell is a whole part of any cell of its crystal: others need not be reduced to be refused.
        alike = (crystal for crystal, atoms in candidates if atoms % len(cell) == 0)
        return any(compare.same(cell, _known_cell(crystal)) for crystal in alike)


@lru_cache(maxsize=8)
def _matcher(tolerance: Tolerance) -> Matcher:
    return Matcher(tolerance)


@lru_cache(maxsize=8)
def _load(name: str, tolerance: Tolerance) -> Reference:
    return replace(_known(name), tolerance=tolerance)


@lru_cache(maxsize=8)
def _known(name: str) -> Reference:
    if name.endswith(SUFFIX):
        index = CrystalIndex.open(name)
        return Reference(name, index.size, index.source, index=index)
    base, _, split = name.rpartition(":")
    if split not in _SPLITS or not base:
        base, split = name, "all"
    if base == "shipped":
        return _load_shipped(name, split)
    from rlgen.data import load

    dataset = load(base)
    if split != "all" and split not in dataset.splits:
        raise UserError(f"reference {name!r}: {base} has no split {split}; it has {', '.join(dataset.splits)}")
    index = CrystalIndex.build(dataset if split == "all" else dataset.splits[split], name)
    return Reference(name, index.size, name, index=index)


def _load_shipped(name: str, split: str) -> Reference:
    import pyarrow.parquet as pq

    if split not in ("train", "all"):
        raise UserError(f"reference {name!r}: there are shipped:train and shipped:all")
    table = pq.read_table(_SHIPPED, filters=[("split", "==", "train")] if split == "train" else None, columns=["label"])
    labels = frozenset(table["label"].to_pylist())
    tolerances = " or ".join(map(str, LOOKUP_SYMPRECS))
    known = "MP-20's training set" if split == "train" else "MP-20"
    what = f"protostructure labels (formula, space group, Wyckoff positions; symprec {tolerances} Å) of {known}"
    return Reference(name, len(labels), what, labels=labels)
