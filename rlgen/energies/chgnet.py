"""CHGNet 0.3.0 (Deng et al. 2023), whose weights come with its wheel; batches are built here, without Python loops."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Any, Self

import torch
from pymatgen.core import Element

from rlgen.energies.base import GraphPotential, PotentialError
from rlgen.energies.graph import Graph, pairs_at_source, undirected
from rlgen.energies.known import TOLERANCE, KnownCrystal, largest_miss

#: Energies (eV/atom) of the cells in `known.py`, from `CHGNet.predict_structure`.
KNOWN = (KnownCrystal("NaCl", -3.6664), KnownCrystal("TiO2", -9.3830))

#: Elements that have a row in the network but no crystal in its training set.
UNTRAINED = frozenset({"Po", "At", "Rn", "Fr", "Ra"})


class CHGNetPotential(GraphPotential):
    """Energies on the scale of MPtrj, which includes the Materials Project's corrections of 2020."""

    name = "chgnet"
    scale = "chgnet-0.3.0"
    atoms_per_batch = 96

    def __init__(self) -> None:
        from chgnet.model.model import BatchedGraph, CHGNet

        with redirect_stdout(StringIO()):  # it greets
            model: Any = CHGNet.load(model_name="0.3.0", use_device="cpu", verbose=False).eval()
        self._model = model.requires_grad_(False)
        self._batched_graph = BatchedGraph
        self._offsets: torch.Tensor = model.composition_model.fc.weight.detach()[0]
        converter = self._model.graph_converter
        self.cutoff, self._bond_cutoff = float(converter.atom_graph_cutoff), float(converter.bond_graph_cutoff)
        self.elements = frozenset(Element.from_Z(z).symbol for z in range(1, len(self._offsets) + 1)) - UNTRAINED
        miss = largest_miss(self, KNOWN)
        if miss > TOLERANCE:
            raise PotentialError(f"{self.scale} misses the known energies of NaCl and TiO2 by {miss:.3f} eV/atom")

    @classmethod
    def load(cls) -> Self:
        """CHGNet from its own wheel, on a GPU if this process sees one."""
        return cls().where_fastest()

    def _energies(self, graph: Graph, positions: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
        to_bond, one_way = undirected(graph)
        edges = torch.stack([graph.source, graph.target], dim=1)
        # The shifts are Cartesian already, so the lattice they would be multiplied with is the identity.
        radial, radial_short, directions = self._model.bond_basis_expansion(
            center=positions[graph.source],
            neighbor=positions[graph.target],
            undirected2directed=one_way,
            image=shifts,
            lattice=torch.eye(3, device=self.device),
        )
        short = (graph.distance < self._bond_cutoff).nonzero()[0]
        one, two = (self._tensor(short[pair]) for pair in pairs_at_source(graph.source.cpu().numpy()[short]))
        angles = torch.stack([graph.source[one], to_bond[one], to_bond[two]], dim=1)
        prediction = self._model._compute(
            self._batched_graph(
                atomic_numbers=graph.numbers,
                bond_bases_ag=radial,
                bond_bases_bg=radial_short,
                angle_bases=self._model.angle_basis_expansion(directions[one], directions[two]) if len(one) else one,
                batched_atom_graph=edges,
                batched_bond_graph=angles,
                atom_owners=graph.owner,
                directed2undirected=to_bond,
                atom_positions=[],
                strains=[],
                volumes=[],
            )
        )
        energy = prediction["e"] * graph.counts
        return energy.index_add(0, graph.owner, self._offsets[graph.numbers - 1])
