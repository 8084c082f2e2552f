"""Completes crystals: an element, coordinates or the lattice is masked, and a policy fills it in.

A policy only sees what it has already written. Masked sites therefore come last, after all that is known; what is known
but must come after what is drawn (all atoms after a lattice, the coordinates after an element) is made to count by
sampling-importance-resampling: of several draws one is kept, in proportion to the probability that the policy gives to
the whole crystal over the probability with which it was drawn. Policies are trained on primitive cells: give one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from pymatgen.core import Element, Lattice, Structure

from policies.model import CrystalPolicy
from policies.representations.text import Text
from policies.representations.text_forced import TEMPLATE, Template
from policies.representations.text_format import check, read
from policies.sampler import decode, sample
from rlgen.types import Condition, CrystalError, UserError

KINDS = ("element", "coordinates", "lattice")


@dataclass(frozen=True)
class Mask:
    """What is asked. kind: one of `KINDS`. sites: places in the crystal that it is asked of, none for the lattice."""

    kind: str
    sites: tuple[int, ...]

    @classmethod
    def of(cls, text: str, structure: Structure) -> Mask:
        """"element:Ca" and "coordinates:O" mean all sites of the element, "coordinates:3" and "element:0,3" sites
        counted from 0, "lattice" the cell. Raises UserError for what is not there."""
        kind, _, target = text.partition(":")
        if kind not in KINDS or (kind == "lattice") == bool(target):
            raise UserError(f"mask={text}: write element:Ca, coordinates:3 (a site, from 0) or lattice")
        if kind == "lattice":
            return cls(kind, ())
        if Element.is_valid_symbol(target):
            sites = tuple(i for i, site in enumerate(structure) if site.specie.symbol == target)
        elif all(part.isdecimal() for part in target.split(",")):
            sites = tuple(sorted({int(part) for part in target.split(",")}))
        else:
            raise UserError(f"mask={text}: {target!r} is neither an element nor sites")
        if not sites or sites[-1] >= len(structure):
            raise UserError(f"mask={text}: the crystal, {structure.formula}, has no such site")
        return cls(kind, sites)


def similar(symbol: str, tolerance: float = 0.1) -> frozenset[int]:
    """Atomic numbers of elements whose average ionic radius is within `tolerance` Å of an element's, itself included.

    Where no ionic radius is known, atomic radii are compared.
    """
    own = Element(symbol)
    kind = "average_ionic_radius" if own.average_ionic_radius else "atomic_radius"
    radius = getattr(own, kind) or 0.0
    every = (Element.from_Z(z) for z in range(1, 119))
    near = {e.Z for e in every if getattr(e, kind) and abs(getattr(e, kind) - radius) <= tolerance + 1e-9}
    return frozenset(near | {own.Z})


def infill(policy: CrystalPolicy, structure: Structure, mask: str, n: int, generator: torch.Generator, *,
           elements: Collection[int] | None = None, temperature: float | None = None, draws: int = 8,
           condition: Condition | None = None) -> list[Structure | CrystalError]:
    """n completions of a crystal, in its own order of sites; what is not masked is kept exactly.

    elements: atomic numbers that a masked element may be (default: `similar` to it); all masked sites get the same one.
    draws: how many each completion is chosen from. condition: what else the prompt says; the number of atoms is known.
    An item is a CrystalError where none of its draws fits what is known. Raises UserError for a mask or a policy that
    cannot be served, CrystalError for a crystal that cannot be written.
    """
    rep = policy.representation
    if not isinstance(rep, Text):
        raise UserError(f"the representation {rep.name!r} cannot fill in; policies that write 'text' can")
    if n < 1 or draws < 1:
        raise UserError(f"n={n} and draws={draws} must be at least 1")
    asked = Mask.of(mask, structure)
    order = [i for i in range(len(structure)) if i not in asked.sites] + list(asked.sites)
    _check_known(rep, structure, asked)
    if asked.kind == "element" and elements is None:
        elements = similar(structure[asked.sites[0]].specie.symbol)
    template = _template(rep, structure, asked, order, elements)
    plain = {**(condition or {}), "n_atoms": len(structure)}
    rollout = sample(policy, [{**plain, TEMPLATE: template}] * (n * draws), generator, temperature=temperature)
    with torch.no_grad():
        whole, _ = policy.token_logprobs(rollout.ids, rollout.temperature, [plain] * len(rollout.ids))
    # A draw that does not go with what is known has probability 0; where nothing is legal, it is not a number.
    weights = (whole - rollout.logprobs).masked_fill(~rollout.mask, 0.0).sum(1).nan_to_num(nan=-torch.inf)
    found = decode(policy, rollout)
    return [_finish(structure, asked, order, found[i]) if i is not None else
            CrystalError("geometry", f"none of {draws} draws fits what is known")
            for i in _resample(weights.view(n, draws), generator)]


def _check_known(rep: Text, structure: Structure, asked: Mask) -> None:
    """Raise CrystalError for what cannot be written, and for a known part that no policy would write."""
    if len(structure) > rep.max_atoms:
        raise CrystalError("parse", f"{len(structure)} atoms, at most {rep.max_atoms}")
    parameters, frac, numbers = read(rep.write(structure), rep.max_atoms)
    known = [i for i in range(len(structure)) if asked.kind != "coordinates" or i not in asked.sites]
    if asked.kind != "lattice":
        check(parameters, frac[known], numbers[known])


def _template(rep: Text, structure: Structure, asked: Mask, order: list[int], elements: Collection[int] | None
              ) -> Template:
    """The crystal's fields with its sites in this order, and None for those that are masked."""
    tokens = rep.tokens(rep.write(Structure.from_sites([structure[i] for i in order])))
    fields: list[tuple[int, ...] | None] = []
    field: list[int] = []
    for token in tokens:
        field.append(token)
        if token == rep.eos or rep.vocabulary[token] in " \n":
            fields.append(tuple(field))
            field = []
    first = len(order) - len(asked.sites)
    for at in range(len(fields)):
        atom, part = divmod(at - 6, 4)
        masked = {"lattice": at < 6, "element": at >= 6 and atom >= first and part == 0,
                  "coordinates": at >= 6 and atom >= first and part > 0}
        if masked[asked.kind]:
            fields[at] = None
    return Template(tuple(fields), frozenset(elements) if asked.kind == "element" and elements is not None else None)


def _resample(weights: torch.Tensor, generator: torch.Generator) -> list[int | None]:
    """For each row of log-weights (N, D) the place of one draw among all N D; None where all are impossible."""
    possible = weights.isfinite().any(1)
    shares = weights.where(possible[:, None], 0.0).double().softmax(1)
    chosen = torch.multinomial(shares, 1, generator=generator)[:, 0]
    places = torch.arange(len(weights), device=weights.device) * weights.shape[1] + chosen
    return [int(place) if ok else None for place, ok in zip(places, possible, strict=True)]


def _finish(structure: Structure, asked: Mask, order: list[int], drawn: Structure | CrystalError
            ) -> Structure | CrystalError:
    """The given crystal with what was masked as drawn."""
    if isinstance(drawn, CrystalError):
        return drawn
    lattice, species, frac = structure.lattice, [site.specie for site in structure], np.array(structure.frac_coords)
    if asked.kind == "lattice":
        lattice = Lattice.from_parameters(*drawn.lattice.parameters)
    for at, site in enumerate(order):
        if site in asked.sites:
            if asked.kind == "element":
                species[site] = drawn[at].specie
            else:
                frac[site] = drawn[at].frac_coords
    return Structure(lattice, species, frac)
