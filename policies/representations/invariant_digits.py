"""The `invariant` representation with its numbers written digit by digit, as Mat2Seq does.

What is one token in `Invariant` with bins is here as many digits as its kind has: whole ångströms 3 and hundredths 2,
whole degrees 3 and hundredths 2, and coordinates 4 decimals. All else is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from policies.representations.base import PAD, State
from policies.representations.lattice import BLOCKS, MIN_ANGLE, MIN_LENGTH
from policies.representations.quantiser import ANGLE_STEPS, LENGTH_STEPS, Q
from rlgen.types import CrystalError

if TYPE_CHECKING:
    from policies.representations.invariant import Invariant

#: The digits of each token of a block.
WRITTEN = {
    "length": [f"{MIN_LENGTH + i:03d}" for i in range(len(BLOCKS["length"]))],
    "hundredth": [f"{i:02d}" for i in range(LENGTH_STEPS)],
    "degree": [f"{MIN_ANGLE + i:03d}" for i in range(len(BLOCKS["degree"]))],
    "twentieth": [f"{i * 100 // ANGLE_STEPS:02d}" for i in range(ANGLE_STEPS)],
    "coordinate": [f"{round(i * 10_000 / Q):04d}" for i in range(Q)],
}
#: Digits of the longest number.
LONGEST = max(len(text) for texts in WRITTEN.values() for text in texts)


class Spelling:
    """Tokens of `bins` (an `Invariant`) as those of `digits` (one with digits), and back."""

    def __init__(self, bins: Invariant, digits: Invariant):
        self.bins, self.zero = bins, digits.first["digit"]
        self.words: list[tuple[int, ...]] = [()] * len(bins.vocabulary)
        for block, first in bins.first.items():
            for i in range(bins.sizes[block]):
                self.words[first + i] = (tuple(self.zero + int(c) for c in WRITTEN[block][i]) if block in WRITTEN
                                         else (digits.first[block] + i,))
        self.numbers = {block: {word: bins.first[block] + i for i in range(bins.sizes[block])
                                for word in [self.words[bins.first[block] + i]]} for block in WRITTEN}
        self.others = {word[0]: token for token, word in enumerate(self.words) if word[0] < self.zero}

    def spell(self, ids: Sequence[int]) -> list[int]:
        return [t for token in ids for t in self.words[token]]

    def read(self, ids: Sequence[int]) -> list[int]:
        """The tokens of bins. Raises CrystalError("parse") for digits that are no number of where they stand."""
        found: list[int] = []
        ids, at = [int(i) for i in ids], 0
        cell: Iterator[str] = iter(())
        while at < len(ids):
            if (token := self.others.get(ids[at])) is not None:
                found.append(token)
                at += 1
                hall = token - self.bins.first["hall"]
                if 0 <= hall < self.bins.sizes["hall"]:
                    cell = iter(self.bins.cell_blocks(hall + 1))
                continue
            block = next(cell, "coordinate")
            word = tuple(ids[at : at + len(WRITTEN[block][0])])
            if word not in self.numbers[block]:
                raise CrystalError("parse", f"{[i - self.zero for i in word]} are not the digits of a {block}")
            found.append(self.numbers[block][word])
            at += len(word)
        return found


class DigitsState(State):
    """A grammar of bins, number by number: a digit may follow if some number that is allowed goes on so."""

    def __init__(self, spelling: Spelling, size: int, inner: State):
        """size: of the vocabulary with digits."""
        self.spelling, self.size, self.inner = spelling, size, inner
        words = spelling.words
        self.digits = torch.full((len(words), LONGEST), -1)  # (V, 4), -1 where there is none
        for token, word in enumerate(words):
            if word[0] >= spelling.zero:
                self.digits[token, : len(word)] = torch.tensor(word) - spelling.zero
        self.length = (self.digits >= 0).sum(1)  # (V,) 0 for what is no number
        self.number = (self.length > 0).nonzero()[:, 0]
        self.other = (self.length == 0).nonzero()[:, 0]
        self.outer = torch.tensor([word[0] for word in words])
        self.inverse = torch.zeros(size, dtype=torch.long)
        self.inverse[self.outer[self.other]] = self.other
        #: (D, 4, 10) which digit each number has where.
        self.has = torch.nn.functional.one_hot(self.digits[self.number] + 1, 11)[..., 1:].float()
        self.alive = inner.legal()  # (B, V) tokens of bins that what was written may become
        self.place = torch.zeros(len(self.alive), dtype=torch.long)  # digits written of the number

    def keep(self, rows: int) -> None:
        self.inner.keep(rows)
        self.alive, self.place = self.alive[:rows], self.place[:rows]

    def legal(self) -> torch.Tensor:
        mask = torch.zeros(len(self.alive), self.size, dtype=torch.bool)
        mask[:, self.outer[self.other]] = self.alive[:, self.other]
        digits = torch.einsum("bd,dpk->bpk", self.alive[:, self.number].float(), self.has) > 0
        # After what was not allowed nothing goes on.
        at = self.place.clamp(max=LONGEST - 1)[:, None, None].expand(-1, 1, 10)
        mask[:, self.spelling.zero : self.spelling.zero + 10] = digits.gather(1, at)[:, 0]
        return mask

    def advance(self, tokens: torch.Tensor) -> None:
        digit = tokens - self.spelling.zero
        is_digit = digit >= 0
        rows = is_digit.nonzero()[:, 0]
        self.alive[rows] &= digit[rows, None] == self.digits[:, self.place[rows].clamp(max=LONGEST - 1)].T
        self.place[rows] += 1
        first = self.alive.int().argmax(1)
        whole = is_digit & (self.place == self.length[first])
        # Padding moves nothing: rows within a number wait.
        inner = torch.where(whole, first, torch.where(is_digit, PAD, self.inverse[tokens.clamp(max=self.size - 1)]))
        self.inner.advance(inner)
        moved = (whole | ~is_digit).nonzero()[:, 0]
        if len(moved):
            self.alive[moved], self.place[moved] = self.inner.legal()[moved], 0
