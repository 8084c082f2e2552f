"""Settings: typed, composed from the YAML files, and clear about mistakes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from rlgen import checkpoint, config
from rlgen.config import known_keys, load
from rlgen.settings import SCHEMAS
from rlgen.types import UserError

#: What must be given, by verb.
GIVEN = {"evaluate": ["input=somewhere"], "relax": ["input=somewhere", "output=elsewhere"],
         "foretell": ["input=somewhere", "relaxed=elsewhere", "output=else"], "merge": ["runs=one,two", "output=else"],
         "annotate": ["data=somewhere", "output=elsewhere"], "explore": ["elements=Na-Cl"], "predict": ["formula=NaCl"]}


@pytest.mark.parametrize("verb", SCHEMAS)
def test_the_files_name_every_setting_and_no_other(verb):
    composed = load(verb, GIVEN.get(verb, []))
    raw = OmegaConf.load(config.CONFIGS / f"{verb}.yaml")
    groups = {key for entry in raw.defaults if OmegaConf.is_dict(entry) for key in entry}
    assert set(raw) - {"defaults"} | groups == set(composed)
    assert all(key.split(".")[0] in composed for key in known_keys(verb))


@pytest.mark.parametrize("verb", SCHEMAS)
def test_the_help_explains_every_setting(verb, capsys):
    with pytest.raises(SystemExit) as end:
        load(verb, ["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    for key in {key.split(".")[-1] for key in known_keys(verb)} - {"representation", "dropout", "trl"}:
        assert f"{key}:" in text or f"{key}=" in text, key


def test_arguments_are_typed():
    settings = load("pretrain", ["steps=7", "learning_rate=1e-4", "data=my.csv", "limit=3", "resume=null"])
    assert (settings.steps, settings.learning_rate, settings.data, settings.limit) == (7, 1e-4, "my.csv", 3)
    assert settings.resume is None and load("pretrain", []).steps != 7  # nothing stays behind
    assert load("pretrain", ["data=a=b"]).data == "a=b"


def test_a_group_comes_first_and_its_keys_after():
    for arguments in (["policy=tiny", "policy.layers=9"], ["policy.layers=9", "policy=tiny"]):
        policy = load("pretrain", arguments).policy
        assert (policy.hidden_size, policy.layers) == (128, 9)


def test_rewards():
    settings = load("finetune", ["reward=novelty+2*stability", "reward.stability.mode=relax", "algorithm=trl",
                                 "reward.stability.scale=0.5", "reward.validity.x=true"])  # fmt: skip
    assert settings.reward.expression == "novelty+2*stability"
    assert settings.reward.stability == {"mode": "relax", "scale": 0.5}
    assert settings.reward.validity == {"x": True} and settings.algorithm.name == "trl"


@pytest.mark.parametrize(
    ("text", "value"), [("No", "No"), ("Na", "Na"), ("7", 7), ("0.5", 0.5), ("null", None), ("false", False)]
)
def test_free_values_are_read_as_meant(text, value):
    """YAML would take the element No for false."""
    found = load("sample", [f"condition.element={text}"]).condition.element
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("verb", "arguments", "says"),
    [
        ("pretrain", ["stpes=3"], r"unknown key 'stpes'; did you mean 'steps'\?\nknown keys: policy.representation, "),
        ("pretrain", ["policy.width=3"], "unknown key 'policy.width'.*\nknown keys: .*policy.hidden_size"),
        ("pretrain", ["steps.x=3"], "unknown key 'steps.x'"),
        ("pretrain", ["steps=many"], "^steps=many: .*Integer"),
        ("pretrain", ["steps=1.5"], "^steps=1.5: .*Integer"),
        ("pretrain", ["steps=null"], "^steps=None?|^steps=null"),
        ("pretrain", ["policy.dropout=high"], "^policy.dropout=high: .*Float"),
        ("pretrain", ["policy=huge"], "unknown policy=huge; known: base, compact, hf, small, tiny"),
        ("finetune", ["algorithm=dpo"], "unknown algorithm=dpo; known: grpo, gvpo, ppo, rloo, trl"),
        ("pretrain", ["steps"], "'steps' is not key=value.*--help"),
        ("pretrain", ["batch=0"], "batch=0: must be at least 1"),
        ("pretrain", ["seed=-1"], "seed=-1: must be at least 0"),
        ("pretrain", ["learning_rate=nan"], "learning_rate=nan: must be at least 0"),
        ("pretrain", ["policy.dropout=1.5"], "policy.dropout=1.5: must be between 0 and 1"),
        ("pretrain", ["policy.heads=0"], "policy.heads=0: must be at least 1"),
        ("finetune", ["algorithm.group_size=0"], "algorithm.group_size=0: must be at least 1"),
        ("sample", ["temperature=0"], "temperature=0.0: must be at least 0.001"),
        ("evaluate", [], "input must be given: python -m rlgen.evaluate input="),
    ],
)
def test_mistakes_are_named(verb, arguments, says):
    with pytest.raises(UserError, match=says):
        load(verb, arguments)


def test_a_mistake_ends_an_entry_point_with_two_and_one_message(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rlgen", "steps=many"])
    with pytest.raises(SystemExit) as end:
        config.main("pretrain", lambda settings: None)
    shown = capsys.readouterr()
    assert end.value.code == 2 and not shown.out
    assert shown.err.startswith("rlgen.pretrain: steps=many") and "Traceback" not in shown.err


def test_other_errors_are_not_hidden(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rlgen"])
    with pytest.raises(ZeroDivisionError):
        config.main("pretrain", lambda settings: 1 / 0)


@pytest.mark.skipif(os.name == "nt", reason="pipes break in another way there")
def test_help_into_a_closed_pipe_is_no_error():
    code = "from rlgen import config; config.main('pretrain', print)"
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([sys.executable, "-c", code, "--help"], stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


# Devices and resuming


def test_devices():
    assert config.device_of("cpu") == torch.device("cpu")
    assert config.device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:99"):
        with pytest.raises(UserError, match=f"'{name}' cannot be used here; known: auto, cpu, cuda"):
            config.device_of(name)


def test_a_new_run_resumes_nothing():
    settings = load("pretrain", [])
    assert config.resumed(settings) == (settings, None)


def a_run(folder, *arguments, verb="finetune"):
    OmegaConf.save(load(verb, list(arguments)), folder / "config.yaml")
    return f"resume={folder}"


def test_a_run_goes_on_with_its_own_settings(tmp_path):
    resume = a_run(tmp_path, "steps=77", "policy=tiny", "output=elsewhere", verb="pretrain")
    stored = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))
    for step in (4, 8):
        checkpoint.save(tmp_path, step, lambda folder: (folder / "x").write_text(""))
    settings, last = config.resumed(load("pretrain", [resume]))
    assert last == tmp_path / "checkpoints" / "step_8"
    assert settings.output == str(tmp_path)  # the folder may have been moved
    assert OmegaConf.to_container(settings) == stored | {"output": str(tmp_path)}


def test_where_there_is_no_run_none_goes_on(tmp_path):
    with pytest.raises(UserError, match="no run there"):
        load("pretrain", [f"resume={tmp_path}"])
    (tmp_path / "config.yaml").write_text("sptes: 3\n")
    with pytest.raises(UserError, match=r"not one of this version.*sptes"):
        load("pretrain", [f"resume={tmp_path}"])


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(tmp_path):
    settings, last = config.resumed(load("pretrain", [a_run(tmp_path, "steps=9", verb="pretrain")]))
    assert last is None and settings.steps == 9


def test_what_changes_on_resume_is_listed_and_must_be_meant(tmp_path):
    resume = a_run(tmp_path, "reward=novelty", "algorithm.learning_rate=1e-4", "reward.stability.mode=relax")
    with pytest.raises(UserError) as error:
        load("finetune", [resume, "reward=stability", "algorithm.learning_rate=2e-4", "steps=100"])
    listed = ["reward.expression: novelty → stability", "algorithm.learning_rate: 0.0001 → 0.0002", "steps: 90 → 100"]
    assert all(f"\n  {line}\n" in str(error.value) for line in listed) and "resume_changed=true" in str(error.value)
    settings = load("finetune", [resume, "reward=stability", "algorithm.learning_rate=2e-4", "resume_changed=true"])
    assert config.changes_of("finetune", settings) == listed[:2] and not settings.resume_changed
    assert settings.reward.stability == {"mode": "relax"}
    with pytest.raises(UserError, match=r"reward.stability: .*'mode': 'relax'.* → .*'single_point'"):
        load("finetune", [resume, "reward.stability.mode=single_point"])


def test_what_may_change_on_resume_and_what_never_does(tmp_path):
    resume = a_run(tmp_path)
    settings = load("finetune", [resume, "steps=100", "workers=0", "checkpoint_every=5", "evaluate=0"])
    assert (settings.steps, settings.workers, settings.checkpoint_every, settings.evaluate) == (100, 0, 5, 0)
    assert not config.changes_of("finetune", load("finetune", [resume, "steps=90"]))
    for argument in ("output=there", "algorithm=trl"):
        with pytest.raises(UserError, match=f"leave out {argument.split('=')[0]}="):
            load("finetune", [resume, argument])
    with pytest.raises(UserError, match="unknown key 'stpes'"):
        load("finetune", [resume, "stpes=3"])
