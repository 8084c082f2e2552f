"""The prompts of the `text` representation: short sentences about the crystal that is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from pymatgen.core import Element

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
    if not Element.is_valid_symbol(str(value)):
        raise UserError(f"element={value!r} is no element")
    return Element(str(value)).symbol


#: All properties that prompts can speak of. A new one is a line here.
SENTENCES = {
    "space_group": Sentence(" Space group {}.", _group, lambda most: "230"),
    "n_atoms": Sentence(" {} atoms.", _atoms, lambda most: "9" * len(str(most))),
    "element": Sentence(" Contains {}.", _element, lambda most: "Og"),
}
#: Each is one token of a prompt; what is between them is written character by character.
WORDS = sorted({word for sentence in SENTENCES.values() for word in re.findall(r" ?[^\s{}.]+", sentence.text)})
_PIECES = re.compile("|".join([*(re.escape(word) for word in sorted(WORDS, key=len, reverse=True)), "."]), re.DOTALL)
_PATTERNS = {key: re.compile(re.escape(sentence.text).replace(r"\{\}", r"(\S+?)")) for key, sentence in
             SENTENCES.items()}


def speak(condition: Condition, most: int) -> str:
    """The sentences for what a condition says of `SENTENCES`, in its order; a value of None or 0 is not asked for."""
    return "".join(SENTENCES[key].text.format(SENTENCES[key].write(value, most))
                   for key, value in condition.items() if key in SENTENCES and value)


def split(text: str) -> list[str]:
    """Words and, where there is none, single characters: the longest word that fits comes first."""
    return _PIECES.findall(text)


def longest(most: int) -> int:
    """Tokens of the longest prompt."""
    return sum(len(split(sentence.text.format(sentence.longest(most)))) for sentence in SENTENCES.values())


@cache
def heard(text: str) -> tuple[int, int, int]:
    """Space group, number of atoms and atomic number that a prompt asks for; 0 for what it does not."""
    group, atoms, element = (found.group(1) if (found := _PATTERNS[key].search(text)) else None
                             for key in ("space_group", "n_atoms", "element"))
    return int(group or 0), int(atoms or 0), Element(element).Z if element else 0
