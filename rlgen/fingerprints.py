"""What coverage compares crystals by: the surroundings of their atoms, and their composition.

CDVAE (Xie et al., arXiv 2110.06197) takes the mean of CrystalNN's order parameters over the sites (Zimmermann and Jain,
RSC Adv. 10, 6063 (2020)) and Magpie's statistics of element properties (Ward et al., npj Comput. Mater. 2, 16028
(2016)), both by matminer. The first are the same here, from pymatgen's CrystalNN. Of Magpie's 22 properties 19 are
here, from pymatgen and ASE: the element's band gap, magnetic moment and space group are left out, and its molar volume
stands for its volume per atom. Distances are therefore in 114 instead of 132 dimensions.
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
from pymatgen.core import Element, Structure

#: Numbers that describe a crystal's sites, and its composition.
SITES, COMPOSITION = 61, 114
#: Magpie's dimensions, for which CDVAE chose its cutoff.
MAGPIE = 132
_LARGEST_COORDINATION = 24
#: Å. Sites that are equal within it are looked at once.
_SAME = 1e-3


def site_fingerprint(structure: Structure) -> np.ndarray:
    """Mean over the sites (61,) of how much each has a coordination number of 1 to 24, and of how much it is then
    like each of that number's motifs. Raises whatever CrystalNN raises where it finds no neighbours."""
    total = np.zeros(SITES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CrystalNN asks for oxidation states at every site; matminer gives it none
        for site, count in _different_sites(structure):
            total += count * np.array(_site(structure, site))
    return total / len(structure)


def _site(structure: Structure, site: int) -> list[float]:
    neighbours = _crystal_nn().get_nn_data(structure, site)
    found: list[float] = []
    for coordination, motifs in enumerate(_motifs(), start=1):
        weight = neighbours.cn_weights.get(coordination, 0.0)
        found.append(weight)
        if not weight:
            found += [0.0] * len(motifs)
            continue
        sites = [structure[site], *(neighbour["site"] for neighbour in neighbours.cn_nninfo[coordination])]
        around = list(range(1, len(sites)))
        # An order parameter that is not defined for these neighbours is None.
        values = [motif.get_order_parameters(sites, 0, indices_neighs=around)[0] or 0.0 for motif in motifs]
        found += [weight * value for value in values]
    return found


def _different_sites(structure: Structure) -> list[tuple[int, int]]:
    """One site of each that symmetry makes equal, and how many these are."""
    import moyopy

    _, order = np.unique(structure.atomic_numbers, return_inverse=True)
    cell = moyopy.Cell(structure.lattice.matrix.tolist(), structure.frac_coords.tolist(), order.tolist())
    try:
        orbits = moyopy.MoyoDataset(cell, symprec=_SAME).orbits
    except BaseException as error:  # as in rlgen.reference: pyo3's panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        orbits = list(range(len(structure)))
    return list(Counter(orbits).items())


@lru_cache(maxsize=1)
def _crystal_nn() -> Any:
    from pymatgen.analysis.local_env import CrystalNN

    return CrystalNN()


@lru_cache(maxsize=1)
def _motifs() -> list[list[Any]]:
    """The order parameters of each coordination number from 1 on."""
    from pymatgen.analysis.local_env import CN_OPT_PARAMS, LocalStructOrderParams

    named = {1: ["sgl_bd"], **{n: ["q2", "q4", "q6"] for n in (9, 10, 11, 12)}}
    found = []
    for coordination in range(1, _LARGEST_COORDINATION + 1):
        fitted = CN_OPT_PARAMS.get(coordination, {}).values()
        kinds: list[Any] = [(fit[0], fit[1] if len(fit) > 1 else None) for fit in fitted]
        kinds += [(name, None) for name in named.get(coordination, [])]
        found.append([LocalStructOrderParams([kind], parameters=[parameters]) for kind, parameters in kinds])
    return found


def composition_fingerprint(structure: Structure) -> np.ndarray:
    """Minimum, maximum, range, mean, mean deviation and mode (6 × 19,) of the elements' properties, by their shares."""
    numbers, counts = np.unique(structure.atomic_numbers, return_counts=True)
    shares = counts / counts.sum()
    values = np.stack([_properties(int(z)) for z in numbers])
    mean = shares @ values
    deviation = shares @ np.abs(values - mean)
    low, high = values.min(0), values.max(0)
    mode = values[shares == shares.max()].min(0)
    return np.concatenate([low, high, high - low, mean, deviation, mode])


@lru_cache(maxsize=128)
def _properties(z: int) -> np.ndarray:
    """19 properties of an element; 0 where one is not known."""
    from ase.data import covalent_radii

    element = Element.from_Z(z)
    outer = {"s": 0, "p": 0, "d": 0, "f": 0}
    # Electrons outside the noble gas before the element, as Magpie counts valence.
    closed = max((noble for noble in (0, 2, 10, 18, 36, 54, 86) if noble < z), default=0)
    inner = {shell[:2] for shell in Element.from_Z(closed).full_electronic_structure} if closed else set()
    for n, orbital, electrons in element.full_electronic_structure:
        if (n, orbital) not in inner:
            outer[orbital] += electrons
    unfilled = {o: (room - outer[o]) if outer[o] else 0 for o, room in (("s", 2), ("p", 6), ("d", 10), ("f", 14))}
    plain = [
        z, element.mendeleev_no, float(element.atomic_mass), element.melting_point, element.group, element.row,
        covalent_radii[z], element.X, *outer.values(), sum(outer.values()), *unfilled.values(), sum(unfilled.values()),
        element.molar_volume,
    ]
    return np.nan_to_num(np.array([0.0 if value is None else float(value) for value in plain]))
