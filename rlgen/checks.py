"""What papers ask of a crystal that is written, each in its own way; a crystal that cannot be judged does not pass."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from ase.data import covalent_radii
from pymatgen.core import Composition, Structure

from rewards.guards import neighbours
from rewards.validity import distance_below
from rlgen.types import UserError

#: Oxidation states that smact knows, and the attribute of its elements that has them.
OXIDATION_STATES = {"icsd24": "oxidation_states_icsd24", "icsd16": "oxidation_states_icsd16",
                    "smact14": "oxidation_states_smact14", "pymatgen_sp": "oxidation_states_sp",
                    "wiki": "oxidation_states_wiki"}  # fmt: skip
#: Largest misfit of atoms that MatterGen still aligns, as a share of the cube root of the volume per atom.
_LARGEST_MISFIT = 0.5


def atoms_apart(structure: Structure, min_distance: float = 0.5, min_volume: float = 0.1) -> bool:
    """Structural validity of CDVAE (Xie et al., arXiv 2110.06197), which MatterGen took over: no two atoms nearer than
    `min_distance` Å and a cell of at least `min_volume` Å³. Unlike there, an atom's own images are atoms too."""
    if not abs(structure.volume) >= min_volume:
        return False
    return distance_below(structure, min_distance) is None


def radii_apart(structure: Structure, share: float = 0.6) -> bool:
    """Whether all atoms are at least `share` of the sum of their covalent radii apart (Cordero et al., Dalton Trans.
    2832 (2008)): what the guard `close` of the stability reward asks. Of crystals whose atoms are apart."""
    radii = covalent_radii[np.asarray(structure.atomic_numbers)]
    one, two, _, distance = neighbours(structure, 2 * share * float(radii.max()))
    return bool((distance >= share * (radii[one] + radii[two])).all())


def charge_neutral(structure: Structure, oxidation_states: str = "icsd24") -> bool:
    """SMACT's validity (Davies et al., Chem 1, 617 (2016)), as CDVAE uses it: some choice of known oxidation states is
    neutral, with the anions more electronegative than the cations; elements and alloys of metals pass.

    CDVAE took the states called smact14 here. An element that smact does not know cannot be judged.
    """
    if oxidation_states not in OXIDATION_STATES:
        raise UserError(f"oxidation_states={oxidation_states}; known: {', '.join(OXIDATION_STATES)}")
    return _neutral(structure.composition.element_composition.reduced_formula, oxidation_states)


@lru_cache(maxsize=1 << 14)
def _neutral(formula: str, oxidation_states: str) -> bool:
    """As `smact.screening.smact_validity`, which tries every choice of states and so takes hours for 15 elements."""
    from smact import Element, metals

    amounts = Composition(formula).get_el_amt_dict()
    if len(amounts) == 1 or all(symbol in metals for symbol in amounts):
        return True
    try:
        elements = [Element(symbol) for symbol in amounts]
    except (KeyError, NameError):  # smact does not know it
        return False
    known: list[list[int]] = [getattr(element, OXIDATION_STATES[oxidation_states]) for element in elements]
    electronegativities = [e.pauling_eneg for e in elements if e.pauling_eneg is not None]
    if not all(known) or len(electronegativities) < len(elements):
        return False
    # Cations are less electronegative than all anions: somewhere lies the border.
    for border in {*electronegativities, np.inf}:
        charges = {0}
        for amount, states, own in zip(amounts.values(), known, electronegativities, strict=True):
            charges = {charge + round(amount) * state for charge in charges for state in states
                       if state == 0 or (state > 0) == (own < border)}
        if 0 in charges:
            return True
    return False


def displacement(written: Structure, relaxed: Structure) -> float:
    """Root mean square distance (Å) of a crystal's atoms from where they relax to, as MatterGen (arXiv 2312.03687)
    measures it: aligned by StructureMatcher without scaling (0.5, 0.5, 10), in units of the mean cell's cube root of
    the volume per atom. Where nothing aligns it is the largest misfit that would have."""
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Lattice

    matcher = StructureMatcher(ltol=0.5, stol=_LARGEST_MISFIT, angle_tol=10, scale=False, attempt_supercell=True)
    found = matcher.get_rms_dist(written, relaxed)
    parameters = (np.array(written.lattice.parameters) + np.array(relaxed.lattice.parameters)) / 2
    unit = (Lattice.from_parameters(*parameters).volume / len(written)) ** (1 / 3)
    return float((_LARGEST_MISFIT if found is None else found[0]) * unit)
