"""How rewards make one number: `novelty+2*stability` is an average, `novelty*stability` a geometric mean."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from rlgen.types import UserError

#: A user's own reward is written as it is imported.
DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_HELP = "write names joined by + and *, with positive weights in front, as in novelty+2*stability"


@dataclass(frozen=True)
class _Name:
    index: int

    def combine(self, scores: np.ndarray) -> np.ndarray:
        return scores[:, self.index]

    def show(self, names: tuple[str, ...], inside_product: bool = False) -> str:
        return names[self.index]


@dataclass(frozen=True)
class _Sum:
    """sum_k w_k s_k / sum_k w_k."""

    terms: tuple[tuple[float, _Node], ...]

    def combine(self, scores: np.ndarray) -> np.ndarray:
        weighted = sum((w * node.combine(scores) for w, node in self.terms), np.zeros(len(scores)))
        return weighted / sum(w for w, _ in self.terms)

    def show(self, names: tuple[str, ...], inside_product: bool = False) -> str:
        text = "+".join(("" if w == 1 else f"{w:g}*") + node.show(names) for w, node in self.terms)
        return f"({text})" if inside_product else text


@dataclass(frozen=True)
class _Product:
    """(prod_k s_k^p_k)^(1 / sum_k p_k): 0 as soon as one factor is 0."""

    factors: tuple[tuple[float, _Node], ...]

    def combine(self, scores: np.ndarray) -> np.ndarray:
        total = sum(p for p, _ in self.factors)
        result = np.ones(len(scores))
        for p, node in self.factors:
            result = result * node.combine(scores) ** (p / total)
        return result

    def show(self, names: tuple[str, ...], inside_product: bool = False) -> str:
        return "*".join(node.show(names, True) + ("" if p == 1 else f"**{p:g}") for p, node in self.factors)


_Node = _Name | _Sum | _Product


@dataclass(frozen=True)
class Expression:
    """A parsed expression. names: the rewards it speaks of, each once, in the order of first mention."""

    names: tuple[str, ...]
    tree: _Node

    def combine(self, scores: np.ndarray) -> np.ndarray:
        """Total (B,) in [0, 1] of scores (B, K), whose columns are `names`. NaN, a score that is missing, counts 0."""
        scores = np.asarray(scores, dtype=float)
        if scores.ndim != 2 or scores.shape[1] != len(self.names):
            raise ValueError(f"scores of shape (B, {len(self.names)}) for {self.names}, not {scores.shape}")
        return np.clip(self.tree.combine(np.clip(np.nan_to_num(scores, nan=0.0), 0.0, 1.0)), 0.0, 1.0)

    def __str__(self) -> str:
        return self.tree.show(self.names)


def parse(text: str, known: Collection[str] | None = None) -> Expression:
    """Read an expression of reward names, +, * (and ** for weights in a product).

    A sum is divided by the sum of its weights and a product is a geometric mean, so that the total stays in [0, 1].
    Brackets mean what they mean in algebra: 2*(a+b)+c is 2*a+2*b+c. known: the names that exist (default: the table
    `rewards.REWARDS`); `my.module:MyReward` is always taken. UserError: an unknown name, or anything else in the text.
    """
    if known is None:
        from rewards import REWARDS

        known = REWARDS
    # "my.module:MyReward" is no Python name, so it travels through the parser under a placeholder.
    dotted: list[str] = []

    def hide(match: re.Match[str]) -> str:
        dotted.append(match.group())
        return f"dotted__{len(dotted) - 1}"

    hidden = DOTTED.sub(hide, text.strip())
    try:
        body = ast.parse(hidden, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"reward={text!r} cannot be read: {_HELP}") from error
    reader = _Reader(text, known, {f"dotted__{i}": name for i, name in enumerate(dotted)})
    tree = reader.read(body)
    return Expression(tuple(reader.names), tree)


class _Reader:
    """Turns Python's syntax tree into ours, and refuses everything that has no meaning for rewards."""

    def __init__(self, text: str, known: Collection[str], dotted: dict[str, str]):
        self.text, self.known, self.dotted = text, known, dotted
        self.names: list[str] = []

    def read(self, node: ast.expr) -> _Node:
        match node:
            case ast.Name(id=name):
                return _Name(self._index(name))
            case ast.BinOp(op=ast.Add()):
                return _Sum(tuple(self._terms(node, 1.0)))
            case ast.BinOp(op=ast.Mult()):
                weight, factors = self._split(node)
                if len(factors) == 1:  # 2*a on its own: an average of one
                    return self.read(factors[0])
                if weight != 1:
                    raise self._error("a weight in front of a product needs a sum; to weigh one factor write a*b**2")
                return _Product(tuple(pair for f in factors for pair in self._factors(f, 1.0)))
            case ast.BinOp(op=ast.Pow()):
                raise self._error(f"the power in {ast.unparse(node)!r} weighs a factor of a product, and there is none")
        raise self._error(f"{ast.unparse(node)!r} has no meaning here")

    def _terms(self, node: ast.expr, weight: float) -> list[tuple[float, _Node]]:
        """The terms of a sum with their weights: w*(a+b) gives w*a and w*b."""
        match node:
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._terms(left, weight) + self._terms(right, weight)
            case ast.BinOp(op=ast.Mult()):
                own, factors = self._split(node)
                if len(factors) == 1:
                    return self._terms(factors[0], weight * own)
                product = _Product(tuple(pair for f in factors for pair in self._factors(f, 1.0)))
                return [(weight * own, product)]
        return [(weight, self.read(node))]

    def _split(self, node: ast.expr) -> tuple[float, list[ast.expr]]:
        """The product of the numbers in a chain of *, and what else is in it."""
        chain = _flat(node)
        numbers = [f for f in chain if isinstance(f, ast.Constant | ast.UnaryOp)]
        factors = [f for f in chain if f not in numbers]
        if not factors:
            raise self._error(f"{ast.unparse(node)!r} names no reward")
        return float(np.prod([self._number(f) for f in numbers])), factors

    def _factors(self, node: ast.expr, power: float) -> list[tuple[float, _Node]]:
        """The factors of a product with their powers: (a*b)**p gives a**p and b**p."""
        match node:
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                return self._factors(left, power * self._number(right))
            case ast.BinOp(left=left, op=ast.Mult(), right=right) if power != 1:
                return self._factors(left, power) + self._factors(right, power)
        return [(power, self.read(node))]

    def _number(self, node: ast.expr) -> float:
        value = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
        # bool is an int to Python, and no weight to anybody.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self._error(f"{ast.unparse(node)!r} is no positive number")
        return float(value)

    def _index(self, name: str) -> int:
        name = self.dotted.get(name, name)
        if name not in self.known and not DOTTED.fullmatch(name):
            raise UserError(f"reward={self.text!r}: unknown reward {name!r}; known are {', '.join(sorted(self.known))}")
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def _error(self, problem: str) -> UserError:
        return UserError(f"reward={self.text!r}: {problem}; {_HELP}")


def _flat(node: ast.expr) -> list[ast.expr]:
    """The factors of a chain of *."""
    match node:
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _flat(left) + _flat(right)
    return [node]
