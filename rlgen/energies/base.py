"""What every potential shares: cells, neighbour lists, batches, derivatives, and the guard around each crystal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from pymatgen.core import Element, Structure
from pymatgen.optimization.neighbors import find_points_in_spheres

from rlgen.energies import PointResult
from rlgen.energies.graph import Graph
from rlgen.types import UserError

#: Closer than this two atoms lie outside anything a potential was trained on (Å).
CLOSEST = 0.4
#: Solids of any element are thinner than this (Å³ per atom; diamond has 5.7): neighbour lists explode beyond it.
DENSEST = 2.0
#: Planes of a usable cell are at least this far apart (Å): flatter cells have thousands of images within the cutoff.
FLATTEST = 0.6
#: Atoms that a batch may hold on a GPU, which small ones leave idle.
ATOMS_ON_GPU = 4096


class PotentialError(UserError):
    """A potential that cannot be loaded, or that gives wrong energies for crystals whose energies are known."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A crystal as arrays: numbers (N,) atomic numbers, positions (N, 3) Å Cartesian, lattice (3, 3) Å rows."""

    numbers: np.ndarray
    positions: np.ndarray
    lattice: np.ndarray

    @classmethod
    def of(cls, structure: Structure) -> Cell:
        return cls(
            np.asarray(structure.atomic_numbers, dtype=np.int64),
            np.array(structure.cart_coords, dtype=np.float64),
            np.array(structure.lattice.matrix, dtype=np.float64),
        )

    @property
    def volume(self) -> float:
        return float(abs(np.linalg.det(self.lattice)))


@dataclass(frozen=True, slots=True)
class Edges:
    """Directed bonds within the cutoff, sorted by source: source, target (E,), image (E, 3), distance (E,) Å."""

    source: np.ndarray
    target: np.ndarray
    image: np.ndarray
    distance: np.ndarray


class CellError(ValueError):
    """A crystal that a potential must not see; the message begins with the kind of trouble."""


def neighbours(cell: Cell, cutoff: float, *, isolated: bool = False) -> Edges:
    """All directed bonds up to `cutoff` Å; refuses cells whose geometry no potential can evaluate.

    Atoms without any neighbour are refused too unless `isolated` says that they are meant.
    """
    if not (np.isfinite(cell.positions).all() and np.isfinite(cell.lattice).all()):
        raise CellError("numeric: coordinates or lattice are not finite")
    volume = cell.volume
    if volume < DENSEST * len(cell.numbers):
        raise CellError(f"dense: {volume / len(cell.numbers):.2f} Å³ per atom")
    areas = np.linalg.norm(np.cross(cell.lattice[[1, 2, 0]], cell.lattice[[2, 0, 1]]), axis=1)
    if volume / areas.max() < FLATTEST:
        raise CellError(f"flat: planes of the cell are {volume / areas.max():.2f} Å apart")
    source, target, image, distance = find_points_in_spheres(
        cell.positions, cell.positions, r=cutoff, pbc=np.ones(3, dtype=np.int64), lattice=cell.lattice, tol=1e-8
    )
    keep = (source != target) | (distance > 1e-8)
    source, target, image, distance = source[keep], target[keep], image[keep], distance[keep]
    if len(np.unique(source)) < len(cell.numbers) and not isolated:
        raise CellError(f"isolated: an atom has no neighbour within {cutoff:g} Å")
    if distance.min(initial=cutoff) < CLOSEST:
        raise CellError(f"overlap: two atoms are {distance.min():.2f} Å apart")
    order = np.argsort(source, kind="stable")
    return Edges(source[order], target[order], image[order], distance[order])


class CellPotential(ABC):
    """Guards a potential: crystals that it must not judge get a reason, only the others reach `_points`."""

    name: str
    scale: str
    #: Reach of the potential (Å): an atom without a neighbour within it is isolated.
    cutoff: float
    elements: frozenset[str]
    #: Whether atoms without neighbours are evaluated. Only for references: bulk Cs lies beyond M3GNet's 5 Å and was
    #: trained so, but to a policy, atoms far apart must never pay.
    allow_isolated: bool = False

    @abstractmethod
    def _points(self, ready: Sequence[tuple[Cell, Edges]], forces: bool) -> list[PointResult]:
        """Each crystal's result; a failure is marked in it, never raised."""

    def evaluate(self, structures: Sequence[Structure], forces: bool = True) -> list[PointResult]:
        """Energies eV/atom (and forces eV/Å, stresses eV/Å³) of each crystal; failures are marked, never raised."""
        cells: list[Cell | str] = []
        for structure in structures:
            cells.append(Cell.of(structure) if structure.is_ordered else "disorder: a site is shared or partly empty")
        return self.evaluate_cells(cells, forces)

    def evaluate_cells(self, cells: Sequence[Cell | str], forces: bool = True) -> list[PointResult]:
        """As `evaluate`, for arrays; a string in place of a cell is the reason why there is none."""
        results: list[PointResult] = [PointResult.failed("")] * len(cells)
        ready: list[tuple[int, Cell, Edges]] = []
        for i, cell in enumerate(cells):
            try:
                ready.append((i, *self.prepare(cell)))
            except CellError as error:
                results[i] = PointResult.failed(str(error))
        points = self._points([(cell, edges) for _, cell, edges in ready], forces)
        for (i, _, _), point in zip(ready, points, strict=True):
            results[i] = point
        return results

    def prepare(self, cell: Cell | str) -> tuple[Cell, Edges]:
        """A crystal with its bonds. CellError: it must not be evaluated, and why."""
        if isinstance(cell, str):
            raise CellError(cell)
        if len(cell.numbers) == 0:
            raise CellError("empty: no atoms")
        unknown = {Element.from_Z(int(z)).symbol for z in np.unique(cell.numbers)} - self.elements
        if unknown:
            raise CellError(f"element: {', '.join(sorted(unknown))} unknown to {self.scale}")
        return cell, neighbours(cell, self.cutoff, isolated=self.allow_isolated)


class GraphPotential(CellPotential):
    """A graph network that gives total energies of a batch; everything around that is here.

    A subclass sets the variables and `_model`, and writes `_energies`.
    """

    _model: Any
    #: Batches hold at most so many atoms: larger ones fall out of a CPU's caches and get slower per crystal.
    atoms_per_batch: int = 128
    device: torch.device = torch.device("cpu")

    def to(self, device: torch.device) -> None:
        """Evaluate there from now on."""
        self._model.to(device)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))
        self.device, self.atoms_per_batch = device, ATOMS_ON_GPU if device.type == "cuda" else self.atoms_per_batch

    def where_fastest(self) -> Self:
        """This potential, on a GPU if this process sees one."""
        if torch.cuda.is_available():
            self.to(torch.device("cuda"))
        return self

    @abstractmethod
    def _energies(self, graph: Graph, positions: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
        """Total energies (B,) eV, differentiable in positions (N, 3) and in the images' shifts (E, 3), both Å."""

    def _points(self, ready: Sequence[tuple[Cell, Edges]], forces: bool) -> list[PointResult]:
        return [point for batch in self._batches(ready) for point in self._evaluate_or_split(batch, forces)]

    def _batches(self, ready: Sequence[tuple[Cell, Edges]]) -> Iterator[list[tuple[Cell, Edges]]]:
        batch: list[tuple[Cell, Edges]] = []
        atoms = 0
        for cell, edges in ready:
            if batch and atoms + len(cell.numbers) > self.atoms_per_batch:
                yield batch
                batch, atoms = [], 0
            batch.append((cell, edges))
            atoms += len(cell.numbers)
        if batch:
            yield batch

    def _evaluate_or_split(self, batch: list[tuple[Cell, Edges]], forces: bool) -> list[PointResult]:
        """One batch; if the network raises, each crystal alone, so that only the one at fault is lost."""
        try:
            return self._evaluate_batch(batch, forces)
        except (RuntimeError, IndexError, ValueError) as error:
            if len(batch) == 1:
                return [PointResult.failed(f"network: {type(error).__name__}: {str(error)[:200]}")]
        return [self._evaluate_or_split([item], forces)[0] for item in batch]

    def graph(self, batch: Sequence[tuple[Cell, Edges]]) -> tuple[Graph, torch.Tensor, torch.Tensor]:
        """Crystals as one graph, with its positions (N, 3) and images' shifts (E, 3), both Å."""
        cells = [cell for cell, _ in batch]
        counts = np.array([len(cell.numbers) for cell in cells])
        first = np.cumsum(counts) - counts
        graph = Graph(
            numbers=self._tensor(np.concatenate([cell.numbers for cell in cells])),
            owner=self._tensor(np.repeat(np.arange(len(cells)), counts)),
            counts=self._tensor(counts),
            source=self._tensor(np.concatenate([e.source + i for (_, e), i in zip(batch, first, strict=True)])),
            target=self._tensor(np.concatenate([e.target + i for (_, e), i in zip(batch, first, strict=True)])),
            image=np.concatenate([e.image for _, e in batch]).astype(np.int64),
            distance=np.concatenate([e.distance for _, e in batch]),
        )
        positions = self._tensor(np.concatenate([cell.positions for cell in cells]).astype(np.float32))
        # The images' shifts are summed in double precision: in single, large cells lose the last digits of a bond.
        shifts = self._tensor(np.concatenate([e.image @ cell.lattice for cell, e in batch]).astype(np.float32))
        return graph, positions, shifts

    def _evaluate_batch(self, batch: list[tuple[Cell, Edges]], forces: bool) -> list[PointResult]:
        graph, positions, shifts = self.graph(batch)
        cells, counts = [cell for cell, _ in batch], graph.counts.cpu().numpy()
        first, edge_owner = np.cumsum(counts) - counts, graph.owner[graph.source]
        if not forces:
            with torch.no_grad():
                energies = self._energies(graph, positions, shifts).cpu().numpy().astype(np.float64)
            return [_point(energy / n) for energy, n in zip(energies, counts, strict=True)]
        positions.requires_grad_(True)
        strain = torch.zeros(len(cells), 3, 3, device=self.device, requires_grad=True)
        deform = torch.eye(3, device=self.device) + strain
        moved = torch.einsum("ni,nij->nj", positions, deform[graph.owner])
        moved_shifts = torch.einsum("ei,eij->ej", shifts, deform[edge_owner])
        total = self._energies(graph, moved, moved_shifts)
        gradient, virial = torch.autograd.grad(total.sum(), [positions, strain])
        energies = total.detach().cpu().numpy().astype(np.float64)
        per_atom = np.split(-gradient.cpu().numpy().astype(np.float64), first[1:])
        virials = virial.cpu().numpy().astype(np.float64)
        return [_point(energies[k] / counts[k], per_atom[k], virials[k] / cells[k].volume) for k in range(len(cells))]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _point(energy: float, forces: np.ndarray | None = None, stress: np.ndarray | None = None) -> PointResult:
    finite = all(np.isfinite(value).all() for value in (energy, forces, stress) if value is not None)
    return PointResult(float(energy), forces, stress) if finite else PointResult.failed("numeric: the energy is NaN")
