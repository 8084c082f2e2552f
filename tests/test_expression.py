"""Expressions of rewards, against numbers worked out by hand."""

import numpy as np
import pytest

from rewards.expression import parse
from rlgen.types import UserError

#: novelty, stability
AB = np.array([[1.0, 0.25], [0.0, 1.0], [0.5, 0.5], [np.nan, 1.0], [1.0, np.nan], [np.nan, np.nan]])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("novelty+stability", [0.625, 0.5, 0.5, 0.5, 0.5, 0]),
        ("novelty+3*stability", [0.4375, 0.75, 0.5, 0.75, 0.25, 0]),
        ("novelty + stability*3", [0.4375, 0.75, 0.5, 0.75, 0.25, 0]),
        ("novelty*stability", [0.5, 0, 0.5, 0, 0, 0]),  # sqrt(1 * 0.25) = 0.5
        ("novelty*stability**3", [0.25**0.75, 0, 0.5, 0, 0, 0]),
        ("novelty+stability+stability", [0.5, 2 / 3, 0.5, 2 / 3, 1 / 3, 0]),  # a name twice has weight 2
        ("novelty+2*novelty*stability", [2 / 3, 0, 0.5, 0, 1 / 3, 0]),
        ("2*(novelty+stability)+stability", [0.55, 0.6, 0.5, 0.6, 0.4, 0]),  # 2a+3b
        ("(novelty+stability)*novelty", [0.625**0.5, 0, 0.5, 0, 0.5**0.5, 0]),
    ],
)
def test_hand_computed(text, expected):
    expression = parse(text)
    assert expression.names == ("novelty", "stability")
    np.testing.assert_allclose(expression.combine(AB), expected, rtol=1e-12)


def test_columns_follow_names():
    expression = parse("stability+3*novelty")
    assert expression.names == ("stability", "novelty")
    np.testing.assert_allclose(expression.combine(np.array([[1.0, 0.0]])), [0.25])
    with pytest.raises(ValueError, match="shape"):
        expression.combine(np.ones((2, 3)))


def test_three_factors_are_one_geometric_mean():
    expression = parse("novelty*stability*validity")
    np.testing.assert_allclose(expression.combine(np.array([[0.5, 0.25, 1.0]])), [0.5])


@pytest.mark.parametrize(
    "text", ["novelty", "novelty+2*stability", "novelty*stability**2", "(novelty+0.5*stability)*uniqueness+validity"]
)
def test_text_and_back(text):
    assert str(parse(text)) == text
    scores = np.random.default_rng(0).random((20, len(parse(text).names)))
    np.testing.assert_array_equal(parse(str(parse(text))).combine(scores), parse(text).combine(scores))


def test_always_between_0_and_1_and_rising():
    rng = np.random.default_rng(1)
    scores = rng.random((200, 4))
    scores[rng.random(scores.shape) < 0.2] = np.nan
    for text in ("novelty+2*stability+uniqueness*validity", "(novelty+3*stability)*(uniqueness+validity)**2"):
        total = parse(text).combine(scores)
        assert np.isfinite(total).all() and (total >= 0).all() and (total <= 1).all()
        # A score that is missing is never worth more than the lowest that could be there.
        np.testing.assert_array_equal(total, parse(text).combine(np.nan_to_num(scores, nan=0.0)))
        assert (parse(text).combine(np.nan_to_num(scores, nan=0.5)) >= total).all()


def test_own_reward_by_dotted_name():
    assert parse("novelty+2*my.module:MyReward").names == ("novelty", "my.module:MyReward")
    assert str(parse("novelty+2*my.module:MyReward")) == "novelty+2*my.module:MyReward"


def test_unknown_names_list_the_known():
    with pytest.raises(
        UserError,
        match="unknown reward 'novelti'; known are condition, formation, novelty, spread, stability, uniqueness, "
              "validity",
    ):
        parse("novelti+stability")
    with pytest.raises(UserError, match="known are a, b"):
        parse("novelty", known=["a", "b"])


@pytest.mark.parametrize(
    "text",
    [
        *("", "2", "novelty+1", "novelty-stability", "-novelty", "novelty/2", "novelty(", "0*novelty", "-2*novelty"),
        *("2*novelty*stability", "novelty**2", "novelty*stability**0", "novelty*2**stability", "True*novelty"),
        *("print(1)", "novelty.real", "novelty if stability else validity", "[novelty]", "'novelty'", "1e999*novelty"),
        *("novelty;stability", "__import__('os')", "novelty:stability:validity", "2*3", "novelty*(2+stability)"),
        *("(" * 5000 + "novelty" + ")" * 5000,),
    ],
)
def test_everything_else_is_refused(text):
    with pytest.raises(UserError):
        parse(text)
