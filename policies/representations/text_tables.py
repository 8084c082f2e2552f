"""What the grammar of `text` looks up: kinds of tokens, formats of numbers, symbols of elements."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pymatgen.core import Element

from policies.representations.base import EOS, MAX_Z, PAD
from policies.representations.quantiser import MAX_ANGLE, MAX_LENGTH

#: Of answers: digits, point, blank, line end, letters.
CHARACTERS = [*"0123456789", ".", " ", "\n", *map(chr, range(ord("A"), ord("Z") + 1)),
              *map(chr, range(ord("a"), ord("z") + 1))]
#: What a row is writing: one of six lattice parameters, an element, one of three coordinates; or it has ended.
ALPHA, BETA, GAMMA, ELEMENT, X, Y, Z, ENDED = range(3, 11)
NONE = 26  # in place of a letter
_ANGLES = MAX_ANGLE + 1


@dataclass(frozen=True)
class Decimals:
    """How many of them are written of lengths (Å), angles (degrees) and fractional coordinates."""

    lengths: int
    angles: int
    coordinates: int

    def of(self, field: int) -> int:
        return self.lengths if field < ALPHA else self.angles if field < ELEMENT else self.coordinates


class Tables:
    """Tensors on one device. first: the token of the first character. size: of the vocabulary."""

    pad, eos = PAD, EOS

    def __init__(self, decimals: Decimals, first: int, size: int, device: torch.device):
        self.size, self.zero = size, first
        self.point, self.blank, self.newline = (first + CHARACTERS.index(c) for c in ". \n")
        self.upper, self.lower = first + CHARACTERS.index("A"), first + CHARACTERS.index("a")
        self.units = [10 ** decimals.of(field) for field in range(ENDED + 1)]
        self.longest = MAX_LENGTH * self.units[0] - 1
        self.widest = max(_ANGLES * self.units[ALPHA], self.units[X])

        def tensor(values: object) -> torch.Tensor:
            return torch.tensor(values, device=device)

        fields = range(ENDED + 1)
        number = [field not in (ELEMENT, ENDED) for field in fields]
        # Elements have no digits, but something must stand there: a number that is never complete.
        self.decimals = tensor([decimals.of(f) if number[f] else 1 for f in fields])
        self.whole = tensor([0 if not number[f] else 3 if f < ELEMENT else 1 for f in fields])
        self.separator = tensor([self.blank if f in (0, 1, ALPHA, BETA, X, Y) else self.newline for f in fields])
        self.after = tensor([*range(1, Z + 1), ELEMENT, ENDED])
        self.tabled = tensor([f in (BETA, Z) for f in fields])
        self.powers = tensor([10**i for i in range(10)])
        self.three, self.ten = tensor([0, 1, 2]), tensor(list(range(10)))
        #: (A,) degrees of all angles on the grid from 0.
        self.angles = torch.arange(_ANGLES * self.units[ALPHA], device=device).double() / self.units[ALPHA]
        self.digit = torch.full((size,), -1, device=device)
        self.digit[first : first + 10] = self.ten
        #: (V, 2) capital and small letter of a token.
        self.letter = torch.full((size, 2), NONE, device=device)
        for column, start in enumerate((self.upper, self.lower)):
            self.letter[start : start + 26, column] = torch.arange(26, device=device)
        self.ends = torch.zeros(size, dtype=torch.bool, device=device)
        self.ends[[self.blank, self.newline, EOS]] = True
        self._name(device)

    def _name(self, device: torch.device) -> None:
        """symbols: (27, 27) atomic number by letters, 0 for none. initials: (119, 26) each element's first letter."""
        symbols, initials = torch.zeros(27, 27, dtype=torch.long), torch.zeros(MAX_Z + 1, 26)
        for z in range(1, MAX_Z + 1):
            symbol = Element.from_Z(z).symbol
            letter = ord(symbol[0]) - ord("A")
            symbols[letter, ord(symbol[1]) - ord("a") if symbol[1:] else NONE] = z
            initials[z, letter] = 1
        self.symbols, self.initials = symbols.to(device), initials.to(device)
