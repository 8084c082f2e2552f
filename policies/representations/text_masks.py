"""The grammar of `text` over whole sequences at once: what `text_grammar` allows, in a seventh of the steps.

Only the lattice goes token by token. After it, what a token is follows from the line it is in and its place there, and
all atoms of all sequences are looked at together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from policies.representations.text_grammar import TextState, letters
from policies.representations.text_tables import NONE, X

#: Pairs of atoms that are looked at together, which bounds the memory.
PAIRS = 1 << 19


class WholeMasks:
    """Masks of sequences (B, T) after the prompt, all of them legal, without hard conditions. state: at their start."""

    def __init__(self, state: TextState, tokens: torch.Tensor):
        self.state, self.t, self.tokens = state, state.t, tokens
        b, n = tokens.shape
        self.mask = torch.zeros(b, n + 1, self.t.size, dtype=torch.bool, device=tokens.device)
        newline = tokens == self.t.newline
        at = torch.arange(n + 1, device=tokens.device)
        #: (B, T + 1), as all below: lines before each token to come, and its place in its own line.
        self.line = F.pad(newline.cumsum(1), (1, 0))
        self.place = at - F.pad(torch.where(newline, at[1:], 0).cummax(1).values if n else newline.long(), (1, 0))
        self.ended = F.pad((tokens == self.t.eos).cumsum(1), (1, 0)) > 0
        self.atom = (self.line - 2).clamp(min=0) // 2
        body = (self.line >= 2) & ~self.ended
        self.named, self.placed = body & (self.line % 2 == 0), body & (self.line % 2 == 1)
        self.decimals = int(self.t.decimals[X])
        self.width = self.decimals + 3  # tokens of a coordinate with its separator

    def __call__(self) -> torch.Tensor:
        self._lattice()
        self._coordinates()
        contents = self.state.contents
        z = self._elements()
        #: (B, N + 1) bool: whether the element asked for is among the atoms before each.
        paid = F.pad((z == contents.owed[:, None]).cumsum(1) > 0, (1, 0)) | (contents.owed == 0)[:, None]
        self._names(paid)
        self._third(paid, self.state.radius_of[z])
        self.mask[..., self.t.pad] = self.ended
        return self.mask

    def _lattice(self) -> None:
        within = self.line < 2
        for i in range(int(within.sum(1).max())):
            self.mask[:, i] = self.state.legal() & within[:, i, None]
            if i < self.tokens.shape[1]:
                # Padding moves nothing: rows that are done wait.
                self.state.advance(torch.where(within[:, i], self.tokens[:, i], self.t.pad))

    def _coordinates(self) -> None:
        """What does not hang on values: "0", the point, blanks, and all digits of the first two coordinates."""
        inner, field = self.place % self.width, self.place // self.width
        self.mask[..., self.t.zero] |= self.placed & (inner == 0)
        self.mask[..., self.t.point] |= self.placed & (inner == 1)
        self.mask[..., self.t.blank] |= self.placed & (inner == self.width - 1) & (field < 2)
        free = self.placed & (inner > 1) & (inner < self.width - 1) & (field < 2)
        self.mask[..., self.t.zero : self.t.zero + 10] |= free[..., None]

    def _token(self, rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """The tokens of these rows at these places, padding after the end."""
        n = self.tokens.shape[1]
        found = self.tokens[rows, at.clamp(max=n - 1)] if n else torch.zeros_like(at)
        return torch.where(at < n, found, self.t.pad)

    def _elements(self) -> torch.Tensor:
        """(B, N) atomic numbers of the atoms whose names are complete, 0 for others."""
        z = torch.zeros(len(self.mask), int(self.atom.max()) + 1, dtype=torch.long, device=self.mask.device)
        rows, at = (self.named[:, :-1] & (self.tokens == self.t.newline)).nonzero(as_tuple=True)
        initial, second = self._letters(rows, at)
        z[rows, self.atom[rows, at]] = self.t.symbols[initial, second]
        return z

    def _letters(self, rows: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The letters of the name that are written before these places."""
        place = self.place[rows, at]
        initial = self.t.letter[self._token(rows, at - place), 0].masked_fill(place < 1, NONE)
        second = self.t.letter[self._token(rows, at - place + 1), 1].masked_fill(place < 2, NONE)
        return initial, second

    def _names(self, paid: torch.Tensor) -> None:
        rows, at = self.named.nonzero(as_tuple=True)
        contents, atom = self.state.contents, self.atom[rows, at]
        owed = contents.owed[rows].masked_fill(paid[rows, atom], 0)
        allowed = self.state.small(rows, contents.elements(contents.most[rows] - atom, owed))
        self.mask[rows, at] = letters(self.t, allowed, *self._letters(rows, at))

    def _third(self, paid: torch.Tensor, radius: torch.Tensor) -> None:
        """Third coordinates, and what follows them. radius: (B, N) Å of the atoms."""
        rows, at = (self.placed & (self.place == 2 * self.width)).nonzero(as_tuple=True)
        atom = self.atom[rows, at]
        frac = torch.zeros(*paid.shape, 3, device=self.mask.device)
        for axis in range(3):
            frac[rows, atom, axis] = self._value(rows, at + (axis - 2) * self.width, self.decimals).float()
        frac /= self.t.units[X]
        several = max(1, PAIRS // paid.shape[1])
        for part in torch.arange(len(rows), device=rows.device).split(several) if len(rows) else ():
            free = self.state.apart(rows[part], frac[rows[part], atom[part]], frac[rows[part]], radius[rows[part]],
                                    atom[part])
            self._digits(rows[part], at[part], free)
        rows, at = (self.placed & (self.place == 3 * self.width - 1)).nonzero(as_tuple=True)
        contents, atom = self.state.contents, self.atom[rows, at] + 1
        exact = contents.exact[rows]
        self.mask[rows, at, self.t.newline] = atom < contents.most[rows]
        self.mask[rows, at, self.t.eos] = paid[rows, atom] & ((exact == 0) | (atom == exact))

    def _value(self, rows: torch.Tensor, at: torch.Tensor, digits: int) -> torch.Tensor:
        """(R,) the first digits after the point of the coordinates that begin at these places, as one number."""
        value = torch.zeros_like(rows)
        for i in range(digits):
            value = value * 10 + self.t.digit[self._token(rows, at + 2 + i)].clamp(min=0)
        return value

    def _digits(self, rows: torch.Tensor, at: torch.Tensor, free: torch.Tensor) -> None:
        """Digits of the coordinates that begin at these places, of which `free` (R, steps) values may be written."""
        counts = F.pad(free.cumsum(1), (1, 0))
        for i in range(self.decimals):
            unit = 10 ** (self.decimals - 1 - i)
            first = (self._value(rows, at, i)[:, None] * 10 + self.t.ten) * unit
            some = counts.gather(1, first + unit) > counts.gather(1, first)
            here = at + 2 + i < self.mask.shape[1]
            here &= self.placed[rows, (at + 2 + i).clamp(max=self.mask.shape[1] - 1)]
            digits = torch.arange(self.t.zero, self.t.zero + 10, device=rows.device)
            self.mask[rows[here, None], (at + 2 + i)[here, None], digits] = some[here]
