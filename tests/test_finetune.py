"""The fine-tuning command from end to end, its exact resume, and what it says of mistakes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from policies.representations import REPRESENTATIONS, make
from rlgen import finetune, likelihood
from rlgen.checkpoint import load_state
from rlgen.config import load
from rlgen.types import UserError


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    """A tiny untrained policy that asks for small crystals."""
    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    CrystalPolicy.create(make("atoms"), hidden_size=32, layers=2, heads=2, intermediate_size=64).save_pretrained(folder)
    PromptTable.of([225, 221, 139], [[11, 17], [22, 38, 8, 8, 8], [29]]).save(folder)
    return folder


def run(policy: Path, output: Path, *more: str) -> None:
    # Without limits on density most random crystals are valid, so that there is something to learn from.
    finetune.run(load("finetune", [f"policy={policy}", f"output={output}", "workers=0", "device=cpu", "energy=chgnet",
                                   "batch=16", "algorithm.group_size=4", "evaluate=0", "real_every=0",
                                   "reward.validity.volume_per_atom=[0,1e9]", "reward.validity.density=[0,1e9]",
                                   "reward.validity.max_length=1e9", *more]))


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def test_run_leaves_what_it_promises(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(likelihood, "CRYSTALS", 8)
    run(policy, tmp_path / "run", "reward=validity+uniqueness", "steps=2", "checkpoint_every=1", "real_every=2",
        "algorithm.temperature=0.8")
    table = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    assert len(table) == 32 and table["step"].tolist() == [1] * 16 + [2] * 16
    assert {"cif", "condition", "total", "status", "reason", "validity", "uniqueness_raw"} <= set(table)
    assert ((table["status"] == "invalid") == (table["validity"] == 0)).all()
    assert (table.loc[table["status"] == "invalid", "total"] == 0).all()
    names = {"reward/total", "reward/validity", "reward/uniqueness_raw", "reward/failed_fraction", "sample/valid",
             "policy/kl", "policy/entropy", "policy/foresight", "policy/grad_norm", "loss/policy",
             "policy/nll_real", "diversity/n_atoms", "reward/std", "reward/equal_groups", "collapse/alarms"}
    assert [m["step"] for m in metrics(tmp_path / "run")] == [1, 2] and names <= set(metrics(tmp_path / "run")[0])
    assert "policy/nll_real" not in metrics(tmp_path / "run")[1]
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert "| reward | validity+uniqueness |" in (tmp_path / "run" / "policy" / "README.md").read_text()
    trained, _ = CrystalPolicy.load(str(tmp_path / "run" / "policy"))
    start, _ = CrystalPolicy.load(str(policy))
    assert torch.equal(trained.embed.weight, start.embed.weight)  # an adapter behind it learns
    assert (start.config.sampling_temperature, trained.config.sampling_temperature) == (1.0, 0.8)
    assert start.adapter is None and trained.adapter is not None and trained.adapter.out.weight.abs().max() > 0


@pytest.mark.parametrize("algorithm", ["grpo", "gvpo"])
@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_every_representation_can_be_finetuned(tmp_path, name, algorithm):
    torch.manual_seed(0)
    CrystalPolicy.create(make(name, max_atoms=8), hidden_size=32, layers=2, heads=2,
                         intermediate_size=64).save_pretrained(tmp_path / "start")
    PromptTable.of([225, 221, 139], [[11, 17], [22, 38, 8, 8, 8], [29]]).save(tmp_path / "start")
    run(tmp_path / "start", tmp_path / "run", "reward=validity+uniqueness", "steps=2", f"representation={name}",
        f"algorithm={algorithm}")
    first, second = metrics(tmp_path / "run")
    # The first step's ratios are exactly 1: what was sampled and what is learnt from is one distribution.
    assert first.get("policy/clip_fraction", 0) == 0 and abs(first["policy/kl"]) < 1e-6
    assert first["sample/valid"] > 0 and second["policy/kl"] > 0


def test_resume_is_the_uninterrupted_run(policy, tmp_path):
    run(policy, tmp_path / "whole", "reward=validity+uniqueness", "steps=4", "checkpoint_every=2",
        "memory.prototype.shape=linear", "memory.prototype.bucket=2", "prompts.power=0.5", "prompts.element=0.5",
        "replay.fraction=0.5", "replay.rows=2")
    replayed = [line["replay/rows"] for line in metrics(tmp_path / "whole")]
    assert replayed[0] == 0 < replayed[-1]
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step_4")
    shutil.rmtree(tmp_path / "cut" / "policy")
    finetune.run(load("finetune", [f"resume={tmp_path / 'cut'}"]))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    a, b = (pd.read_parquet(tmp_path / name / "samples.parquet") for name in ("cut", "whole"))
    pd.testing.assert_frame_equal(a, b)


def test_gvpo_forgets_what_was_scored_at_another_temperature(policy, tmp_path):
    run(policy, tmp_path / "run", "checkpoint_every=1", "stages=[{reward: validity, steps: 2}, "
        "{reward: validity, steps: 1, algorithm.temperature: 0.9}]")
    kept = [len(load_state(tmp_path / "run" / "checkpoints" / f"step_{step}" / "learner")["rewards"])
            for step in (1, 2, 3)]
    assert kept == [16, 32, 16]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["reward=novelti"], "novelty"),
        (["reward=validity", "policy=/nowhere"], "no policy there"),
        (["reward=validity", "energy=dft"], "chgnet"),
        (["reward=validity", "batch=20", "algorithm.group_size=8"], "multiple"),
        (["reward=stability", "reward.stability.widht=1"], "width"),
        (["reward=validity", "memory.formula.shape=stairs"], "known: none, inverse, step, linear, sigmoid"),
        (["reward=validity", "prompts.element=2"], "between 0 and 1"),
        (["reward=validity", "replay.fraction=0.5", "replay.rows=4"], "must leave room in groups of 4"),
    ],
)
def test_mistakes_are_told(policy, tmp_path, arguments, says):
    with pytest.raises(UserError, match=says):
        run(policy, tmp_path / "run", "steps=1", *arguments)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_sample_and_evaluate_commands(policy, tmp_path):
    def command(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command("rlgen.sample", f"policy={policy}", "n=6", f"output={tmp_path / 's'}", "condition.n_atoms=3", "device=cpu")
    table = pd.read_parquet(tmp_path / "s" / "samples.parquet")
    assert len(table) == 6 and all(json.loads(c)["n_atoms"] == 3 for c in table["condition"])
    shown = command("rlgen.evaluate", f"input={tmp_path / 's'}", "energy=chgnet", "workers=0", "relax_steps=1",
                    "real=null", f"output={tmp_path / 'e'}")
    assert "S.U.N." in shown
    judged = json.loads((tmp_path / "e" / "table.json").read_text())
    assert len(pd.read_parquet(tmp_path / "e" / "judged_0.parquet")) == 6 and judged


def test_a_prompt_that_cannot_be_asked_for_leaves_no_run(policy, tmp_path):
    with pytest.raises(UserError, match="cannot ask for densty"):
        run(policy, tmp_path / "run", "reward=novelty", "prompts.grid.densty=[1,2]")
    assert not (tmp_path / "run").exists()
