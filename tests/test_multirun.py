"""Sweeps: what is combined, what is not split, and that one failed run stops no other."""

from __future__ import annotations

import json
import sys

import pytest

from rlgen import config, multirun
from rlgen.types import UserError


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("0,1,2", ["0", "1", "2"]),
        ("grpo", ["grpo"]),
        ("", [""]),
        ("[0,1e9],[1,2]", ["[0,1e9]", "[1,2]"]),
        ("[{steps: 3, until: a > 1}],[]", ["[{steps: 3, until: a > 1}]", "[]"]),
        ("'a,b',c", ["a,b", "c"]),
        ('"a,b"', ["a,b"]),
        ("novelty*(a,b),x", ["novelty*(a,b)", "x"]),
    ],
)
def test_values_are_split_at_their_own_commas(value, parts):
    assert multirun.split(value) == parts


def test_every_combination_in_order():
    found = multirun.combinations(["seed=0,1", "reward=novelty", "algorithm=grpo,ppo"])
    assert [one["seed"] + one["algorithm"] for one in found] == ["0grpo", "0ppo", "1grpo", "1ppo"]
    assert {one["reward"] for one in found} == {"novelty"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["seed"], "'seed' is not key=value"), (["resume=x", "seed=0,1"], "resume= goes on with one"),
     (["output=a,b"], "output= cannot be swept"), (["seed=0,x"], "seed=x"),
     (["reward=a b,a?b"], "two runs would share a folder")],
)  # fmt: skip
def test_mistakes_are_told_before_anything_runs(tmp_path, monkeypatch, arguments, says):
    monkeypatch.setattr(multirun.subprocess, "run", lambda *_: pytest.fail("a run was started"))
    with pytest.raises(UserError, match=says):
        multirun.run("finetune", arguments, str(tmp_path))


def test_one_run_that_fails_stops_no_other_and_the_exit_code_tells(tmp_path, monkeypatch, capsys):
    """Two real processes: sampling from a policy that is not there fails, from the shipped one it does not."""
    monkeypatch.setattr(sys, "argv", ["rlgen", "--multirun", f"policy={tmp_path / 'nowhere'},shipped", "n=2",
                                      "condition.n_atoms=2", "device=cpu", f"output={tmp_path}"])
    with pytest.raises(SystemExit) as end:
        config.main("sample", lambda settings: pytest.fail("a run of its own"))
    assert end.value.code == 1
    good = [folder for folder in tmp_path.iterdir() if (folder / "samples.parquet").exists()]
    assert [folder.name for folder in good] == ["policy=shipped"]
    table = (tmp_path / "sweep.md").read_text().splitlines()
    assert "failed (2)" in table[2] and table[3].startswith("| policy=shipped | well |")
    assert (tmp_path / "sweep.md").read_text() in capsys.readouterr().out


def test_the_table_compares_the_last_steps(tmp_path):
    for name, best in (("seed=0", 0.5), ("seed=1", 0.9)):
        (tmp_path / name).mkdir()
        lines = [{"step": step, "reward/learned": best * (step > 10), "policy/kl": None} for step in range(1, 21)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert multirun.table(tmp_path, ["seed=0", "seed=1", "seed=2"], [0, 0, 137]) == (
        "| run | ended | steps | reward/learned | policy/kl |\n| --- | --- | ---: | ---: | ---: |\n"
        "| seed=0 | well | 20 | 0.5 |  |\n| seed=1 | well | 20 | 0.9 |  |\n| seed=2 | failed (137) | 0 |  |  |\n")
