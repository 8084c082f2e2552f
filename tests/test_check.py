"""The contract test of rewards finds what is wrong with a reward, and nothing where nothing is."""

from __future__ import annotations

import pytest

from rewards import make
from rewards.check import asked_of, check, crystals, main


def findings(name: str) -> list[tuple[str, str]]:
    structures = crystals(8)
    return [(f.level, f.what) for f in check(make(f"toy_wrong_rewards:{name}"), structures, asked_of(structures))]


def test_the_crystals_are_real_and_of_many_kinds():
    some = crystals()
    assert len(some) == 24 and len({s.composition.reduced_formula for s in some}) > 20
    assert {len(s.composition) for s in some} >= {1, 2, 3} and max(map(len, some)) <= 20
    asked = asked_of(some)
    assert sum(bool(condition) for condition in asked) == 12
    match = make("condition").measure(some, asked)
    assert match[0::2] == pytest.approx(1) and match[1::4] == pytest.approx(1) and (match[3::4] < 0.9).all()
    assert make("validity").measure(some, asked).all()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("NotFrozen", "not frozen"),
        ("TakenName", "which is that of rlgen's own rewards.novelty:Novelty"),
        ("NoShape", r"gives the shape () for 8 crystals"),
        ("Infinite", "gives infinity for"),
        ("Nothing", "NaN for every crystal"),
        ("TooHigh", "must be in [0, 1]"),
        ("PaysForNaN", "makes 1 of NaN"),
        ("Relative", "per_sample is True, but a value depends on the other crystals"),
        ("OfThePlace", "depends on the crystal's place"),
        ("Random", "measured again have other values"),
        ("Stretches", "changes the crystals"),
        ("ChangesRaw", "transform changes the raw values"),
        ("Stays", "cannot be sent to a worker"),
        ("Raises", "ZeroDivisionError: division by zero (toy_wrong_rewards.py"),
        ("NeedsToBeAsked", "over 4 of 8 crystals"),
    ],
)
def test_what_is_wrong_is_found(name, what):
    found = findings(name)
    assert any(level == "wrong" and what in text for level, text in found), found


@pytest.mark.parametrize(("name", "what"), [("Constant", "every crystal has the score"),
                                            ("Shared", "no value depends on other crystals")])
def test_what_could_be_better_is_noted(name, what):
    found = findings(name)
    assert any(level == "note" and what in text for level, text in found)
    assert not [text for level, text in found if level == "wrong"]


@pytest.mark.parametrize("name", ["toy_wrong_rewards:Right", "validity", "uniqueness", "spread", "condition"])
def test_nothing_is_found_where_nothing_is_wrong(name, capsys):
    assert main([name, "--crystals", "8"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert not [line for line in said if line.startswith("wrong")] and said[-1].startswith("nothing is wrong")


def test_parameters_and_mistakes(capsys):
    assert main(["toy_wrong_rewards:Right", "most=1", "--crystals", "4"]) == 0
    assert "score 1.00 to 1.00" in capsys.readouterr().out
    assert main(["condition", "width.density=0", "--crystals", "4"]) == 2
    assert "width.density=0: must be above 0" in capsys.readouterr().err
    assert main(["toy_wrong_rewards:Rihgt"]) == 2 and "cannot be imported" in capsys.readouterr().err
    assert main(["condition", "width"]) == 2
    assert main(["toy_wrong_rewards:TooHigh", "--crystals", "4"]) == 1
    assert "wrong transform gives scores from" in capsys.readouterr().out
