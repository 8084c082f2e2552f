"""Infilling in `text`: some fields of a crystal are known, and only the others are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from policies.representations.base import State
from policies.representations.text_grammar import TextState
from policies.representations.text_tables import ELEMENT, ENDED

#: The key of a condition under which a template is found.
TEMPLATE = "template"


@dataclass(frozen=True)
class Template:
    """What is known of one crystal, field by field, so that a field of another length moves nothing else.

    fields: six lattice parameters, then element, x, y, z of every atom: the tokens of each with its separator, None
    for what is free. elements: of which those of free sites may be, None for any; all free sites get the same one.
    """

    fields: tuple[tuple[int, ...] | None, ...]
    elements: frozenset[int] | None = None


class Forced(State):
    """A grammar whose rows keep to their templates (None: a row without one).

    What is known is written even where the grammar would not have drawn it.
    """

    def __init__(self, state: TextState, templates: Sequence[Template | None]):
        self.state, self.templates = state, list(templates)
        self.at = torch.zeros_like(state.field)  # tokens written of each row's field
        self.chosen: list[tuple[int, ...]] = [()] * len(self.templates)  # tokens of the element of free sites

    def keep(self, rows: int) -> None:
        self.state.keep(rows)
        self.at, self.templates, self.chosen = self.at[:rows], self.templates[:rows], self.chosen[:rows]

    def legal(self) -> torch.Tensor:
        state, fields, placed = self.state, self.state.field.tolist(), self.state.contents.placed.tolist()
        known = [self._known(row, field, atoms) for row, (field, atoms) in enumerate(zip(fields, placed, strict=True))]
        for row, field in enumerate(fields):
            template = self.templates[row]
            if field == ELEMENT and template is not None and template.elements is not None:
                every = torch.arange(state.elements.shape[1])
                among = torch.isin(every, torch.tensor(sorted(template.elements))).to(state.elements.device)
                some = state.elements[row] & among
                if not some.any():  # those asked for are too large for the cell
                    some = state.contents.allowed(torch.tensor([row], device=among.device))[0] & among
                state.elements[row] = some
        mask = state.legal()
        for row, (tokens, at) in enumerate(zip(known, self.at.tolist(), strict=True)):
            if tokens is not None:
                mask[row] = False
                mask[row, tokens[at]] = True
        return mask

    def _known(self, row: int, field: int, placed: int) -> tuple[int, ...] | None:
        """The tokens of the field that a row is writing after `placed` names of atoms, None if they are free."""
        template = self.templates[row]
        if template is None or field == ENDED:
            return None
        if field < ELEMENT:
            return template.fields[field]
        atom = placed - (field > ELEMENT)
        tokens = template.fields[ELEMENT + 4 * atom + field - ELEMENT]
        return tokens if tokens is not None or field > ELEMENT else self.chosen[row] or None

    def advance(self, tokens: torch.Tensor) -> None:
        before = self.state.field
        for row in (before == ELEMENT).nonzero()[:, 0].tolist():
            if self.templates[row] is not None:
                self._choose(row, int(tokens[row]))
        before = before.clone()
        self.state.advance(tokens)
        self.at = torch.where(self.state.field == before, self.at + 1, 0)

    def _choose(self, row: int, token: int) -> None:
        """Remember the element of the first free site once its line ends."""
        t = self.state.t
        if token == t.newline and self._known(row, ELEMENT, int(self.state.contents.placed[row])) is None:
            capital, small = self.state.letters[row].tolist()
            written = [t.upper + capital, *([t.lower + small] if small < 26 else [])]
            self.chosen[row] = (*written, token)
