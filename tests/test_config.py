"""Settings: typed, composed from the YAML files, and clear about mistakes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf

from rlgen import checkpoint, config
from rlgen.config import SCHEMAS, known_keys, load
from rlgen.types import UserError

#: What must be given, by verb.
GIVEN = {"evaluate": ["input=somewhere"]}


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
        ("finetune", ["algorithm=ppo"], "unknown algorithm=ppo; known: grpo, trl"),
        ("pretrain", ["steps"], "'steps' is not key=value.*--help"),
        ("pretrain", ["batch=0"], "batch=0: must be at least 1"),
        ("pretrain", ["seed=-1"], "seed=-1: must be at least 0"),
        ("pretrain", ["learning_rate=nan"], "learning_rate=nan: must be at least 0"),
        ("pretrain", ["policy.dropout=1.5"], "policy.dropout=1.5: must be between 0 and 1"),
        ("pretrain", ["policy.heads=0"], "policy.heads=0: must be at least 1"),
        ("finetune", ["algorithm.group_size=1"], "algorithm.group_size=1: must be at least 2"),
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


def test_a_run_goes_on_with_its_own_settings(tmp_path):
    stored = load("pretrain", ["steps=77", "policy=tiny", "output=elsewhere"])
    OmegaConf.save(stored, tmp_path / "config.yaml")
    for step in (4, 8):
        checkpoint.save(tmp_path, step, lambda folder: (folder / "x").write_text(""))
    settings, last = config.resumed(load("pretrain", [f"resume={tmp_path}"]))
    assert last == tmp_path / "checkpoints" / "step_8"
    assert settings.output == str(tmp_path)  # the folder may have been moved
    assert OmegaConf.to_container(settings) == OmegaConf.to_container(stored) | {"output": str(tmp_path)}


def test_nothing_to_resume_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no run there"):
        config.resumed(load("pretrain", [f"resume={tmp_path}"]))
    OmegaConf.save(load("pretrain", []), tmp_path / "config.yaml")
    with pytest.raises(UserError, match="no checkpoint yet"):
        config.resumed(load("pretrain", [f"resume={tmp_path}"]))


def test_resume_takes_no_other_settings():
    # They would be ignored: a run goes on with its own.
    with pytest.raises(UserError, match="leave out steps"):
        load("finetune", ["resume=somewhere", "steps=3"])
