"""What a protostructure label says of its crystal, e.g. "AB_cF8_225_a_b:Cl-Na" (made by `rlgen.reference`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType

#: Ends the label of a crystal whose symmetry could not be determined.
UNLABELLED = "|unlabelled"
#: Space groups and those of their crystals' mirror images, under which labels name both.
MIRRORED = {78: 76, 95: 91, 96: 92, 145: 144, 153: 151, 154: 152, 170: 169, 172: 171, 179: 178, 181: 180, 212: 213}
#: Atoms of a conventional cell per atom of the primitive one, by the second letter of a Pearson symbol.
_CENTRING = {"P": 1, "A": 2, "B": 2, "C": 2, "S": 2, "I": 2, "R": 3, "F": 4}
#: More elements of equal count than this have too many orders for a prototype's name to be made the same for all.
_LARGEST_ORDER = 6


@cache
def library() -> ModuleType:
    """`pymatgen.analysis.prototypes`, in a sixth of the seconds that importing it takes: pymatgen would first parse the
    references of each of the prototypes that it ships, as BibTeX."""
    from unittest import mock

    from pymatgen.util import provenance

    with mock.patch.object(provenance, "is_valid_bibtex", return_value=True, create=True):
        import pymatgen.analysis.prototypes as prototypes
    return prototypes


@dataclass(frozen=True)
class Protostructure:
    """space_group: 1..230, of two enantiomorphic ones that in `MIRRORED`'s values. prototype: how the positions are
    occupied, without chemistry, e.g. "AB_cF8_225_a_b". n_atoms: of the primitive cell. elements: by their symbols.
    formula: reduced, its elements in alphabetical order, e.g. "ClNa"."""

    space_group: int
    prototype: str
    n_atoms: int
    elements: tuple[str, ...]
    formula: str


@lru_cache(maxsize=1 << 16)
def read_label(label: str) -> Protostructure | None:
    """The parts of a label; None for that of a crystal whose symmetry could not be determined."""
    if label.endswith(UNLABELLED):
        return None
    plain, chemistry = label.split(":")
    formula, pearson, number = plain.split("_")[:3]
    elements = tuple(chemistry.split("-"))
    counts = re.findall(r"[A-Z](\d*)", formula)
    return Protostructure(
        int(number), _prototype(plain), int(pearson[2:]) // _CENTRING[pearson[1]], elements,
        "".join(element + count for element, count in zip(elements, counts, strict=True)),
    )  # fmt: skip


@lru_cache(maxsize=1 << 16)
def _prototype(plain: str) -> str:
    """The same name whichever element is called A, and whichever origin was chosen."""
    counts = re.findall(r"[A-Z](\d*)", plain.split("_")[0])
    if max(map(counts.count, counts)) > _LARGEST_ORDER:
        return plain
    return str(library().get_prototype_from_protostructure(f"{plain}:"))
