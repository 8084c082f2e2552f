"""Guards against crystals that a potential would pay for without having seen their like.

Each refusal begins with the guard's name; `rlgen.tracking` shows `guard/<name>`, how many crystals of a batch it
refused. docs/energies.md gives the share of real crystals that each refuses by mistake.
"""

from __future__ import annotations

import numpy as np
from ase.data import covalent_radii
from pymatgen.core import Structure
from pymatgen.optimization.neighbors import find_points_in_spheres

#: All guards, by the first word of what they say; docs/energies.md has a table of what each looks at.
GUARDS = ("close", "overlap", "dense", "flat", "isolated", "fragments", "volume", "force", "low", "audit")
_PERIODIC = np.ones(3, dtype=np.int64)


def refuse(structure: Structure, closest: float, vacuum: float) -> str:
    """Why the geometry cannot be a crystal's, or "".

    close: two atoms nearer than `closest` times the sum of their covalent radii (Cordero et al., Dalton Trans. 2832
    (2008)). fragments: atoms, molecules, chains or layers with more than `vacuum` Å between their covalent spheres and
    those of everything around them, so that how they lie to each other would hardly change the energy.
    """
    radii = covalent_radii[np.asarray(structure.atomic_numbers)]
    one, two, image, distance = neighbours(structure, 2 * float(radii.max()) + vacuum)
    touching = radii[one] + radii[two]
    ratio = distance / touching
    if len(ratio) and ratio.min() < closest:
        k = int(ratio.argmin())
        a, b = structure[int(one[k])].specie, structure[int(two[k])].specie
        return f"close: {a} and {b} {distance[k]:.2f} Å apart, {ratio[k]:.2f} of the sum of their radii"
    near = distance < touching + vacuum
    dimensions = connected_dimensions(len(structure), one[near], two[near], image[near])
    if dimensions < 3:
        what = ("atoms or molecules", "chains", "layers")[dimensions]
        return f"fragments: {what} more than {vacuum:g} Å from all else"
    return ""


def neighbours(structure: Structure, reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of atoms (E,) within `reach` Å, each both ways: one and the other atom, the cell (E, 3) of the other, and
    their distance (Å); an atom's own images count."""
    lattice = structure.lattice.get_lll_reduced_lattice() if _thin(structure) else structure.lattice
    matrix = np.array(lattice.matrix, order="C")
    points = np.ascontiguousarray((lattice.get_fractional_coords(structure.cart_coords) % 1.0) @ matrix)
    one, two, image, distance = find_points_in_spheres(points, points, r=reach, pbc=_PERIODIC, lattice=matrix, tol=1e-8)
    other = (one != two) | (image != 0).any(axis=1)
    return one[other], two[other], image[other], distance[other]


def connected_dimensions(n: int, one: np.ndarray, two: np.ndarray, image: np.ndarray) -> int:
    """In how many dimensions the least extended part of n atoms goes on for ever; 3 only if all of them are one part.

    one, two (E,): atoms that touch, the second in the cell `image` (E, 3), each pair both ways. A part's dimension is
    the rank of the cell vectors by which its closed paths end elsewhere.
    """
    order = np.argsort(one, kind="stable")
    one, two, image = one[order], two[order], image[order]
    first = np.searchsorted(one, np.arange(n + 1))
    part = np.full(n, -1)
    place = np.zeros((n, 3), dtype=np.int64)
    for root in range(n):
        if part[root] < 0:
            part[root], queue = root, [root]
            while queue:
                atom = queue.pop()
                for edge in range(first[atom], first[atom + 1]):
                    neighbour = int(two[edge])
                    if part[neighbour] < 0:
                        part[neighbour], place[neighbour] = root, place[atom] + image[edge]
                        queue.append(neighbour)
    closed = place[one] + image - place[two]
    ranks = [int(np.linalg.matrix_rank(closed[part[one] == root])) for root in np.unique(part)]
    return ranks[0] if len(ranks) == 1 else min(2, *ranks)


def _thin(structure: Structure) -> bool:
    """A cell so thin along a vector that a neighbour search would look at very many images."""
    lattice = structure.lattice
    areas = np.linalg.norm(np.cross(lattice.matrix[[1, 2, 0]], lattice.matrix[[2, 0, 1]]), axis=1)
    return bool(lattice.volume / areas.max() < 1.0)
