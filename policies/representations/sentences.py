"""The prompts of the `text` representation: short sentences about the crystal that is asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from pymatgen.core import Element

from rlgen.conditions import Category, Transform, known, symbols
from rlgen.types import Condition, UserError


@dataclass(frozen=True)
class Sentence:
    """One property. text: with {} for the value. write: (value, most atoms) -> how the value is written, or UserError.

    longest: (most atoms) -> the longest value. Sentences start with a blank, so that every word does.
    """

    text: str
    write: Callable[[Any, int], str]
    longest: Callable[[int], str]


def _group(value: Any, most: int) -> str:
    if not 1 <= int(value) <= 230:
        raise UserError(f"space_group={value} is not in 1 to 230")
    return str(int(value))


def _atoms(value: Any, most: int) -> str:
    if not 1 <= int(value) <= most:
        raise UserError(f"n_atoms={value} is not in 1 to {most}")
    return str(int(value))


def _element(value: Any, most: int) -> str:
    symbol = symbols(value)[0]
    if not Element.is_valid_symbol(symbol):
        raise UserError(f"element={value!r} is no element")
    return Element(symbol).symbol


#: What prompts say of every crystal. A new one is a line here.
SENTENCES = {
    "space_group": Sentence(" Space group {}.", _group, lambda most: "230"),
    "n_atoms": Sentence(" {} atoms.", _atoms, lambda most: "9" * len(str(most))),
    "element": Sentence(" Contains {}.", _element, lambda most: "Og"),
}
_PATTERNS = {key: re.compile(re.escape(sentence.text).replace(r"\{\}", r"(\S+?)")) for key, sentence in
             SENTENCES.items()}


class Speech:
    """The sentences of a policy that is also asked for properties, by their scales.

    words: each is one token of a prompt, those of the properties last; what is between them is written character by
    character.
    """

    def __init__(self, scales: Mapping[str, Transform | Category]):
        self._told = {name: _told(name, scale) for name, scale in scales.items()}
        self.sentences = SENTENCES | self._told
        self.words = _words(SENTENCES)
        self.words += [word for word in _words(self._told) if word not in self.words]
        if any(isinstance(scale, Transform) and scale.low < 0 for scale in scales.values()):
            self.words.append("-")
        longest_first = sorted(self.words, key=len, reverse=True)
        self._pieces = re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)

    def speak(self, condition: Condition, most: int) -> str:
        """The sentences for what a condition says, in its order; None, NaN and, but for properties, 0 say nothing."""
        return "".join(self.sentences[key].text.format(self.sentences[key].write(value, most))
                       for key, value in condition.items()
                       if key in self.sentences and known(value) and (value or key in self._told))

    def split(self, text: str) -> list[str]:
        """Words and, where there is none, single characters: the longest word that fits comes first."""
        return self._pieces.findall(text)

    def longest(self, most: int) -> int:
        """Tokens of the longest prompt."""
        return sum(len(self.split(sentence.text.format(sentence.longest(most)))) for sentence in
                   self.sentences.values())

    def without_properties(self, text: str) -> str:
        for sentence in self._told.values():
            text = re.sub(re.escape(sentence.text).replace(r"\{\}", r"\S+"), "", text)
        return text


def _told(name: str, scale: Transform | Category) -> Sentence:
    """A property's sentence, like " density: 5.31."; what is beyond the range of its scale is told as its end."""
    if isinstance(scale, Category):
        text, longest = scale.names.__getitem__, max(scale.names, key=len)
        return Sentence(f" {name.replace('_', ' ')}: {{}}.", lambda value, most: text(scale.index(value)),
                        lambda most: longest)
    decimals = max(0, 1 - math.floor(math.log10((scale.high - scale.low) / scale.bins)))

    def write(value: Any, most: int) -> str:
        scale.index(value)  # says what is no number
        value = min(max(float(value), scale.low), scale.high)
        if scale.kind == "linear":
            return f"{value:.{decimals}f}"
        return np.format_float_positional(value, precision=3, fractional=False, trim="-")

    decades = range(math.floor(math.log10(abs(scale.low) or 1)), math.ceil(math.log10(abs(scale.high) or 1)) + 1)
    candidates = [scale.low, scale.high, *(1.23 * 10.0**e for e in decades if scale.kind == "log")]
    longest = max((write(value, 0) for value in candidates), key=len)
    return Sentence(f" {name.replace('_', ' ')}: {{}}.", write, lambda most: longest)


def _words(sentences: Mapping[str, Sentence]) -> list[str]:
    return sorted({word for sentence in sentences.values() for word in re.findall(r" ?[^\s{}.]+", sentence.text)})


@cache
def heard(text: str) -> tuple[int, int, int]:
    """Space group, number of atoms and atomic number that a prompt asks for; 0 for what it does not."""
    group, atoms, element = (found.group(1) if (found := _PATTERNS[key].search(text)) else None
                             for key in ("space_group", "n_atoms", "element"))
    return int(group or 0), int(atoms or 0), Element(element).Z if element else 0
