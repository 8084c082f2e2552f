"""A curriculum: how it is written, when a stage ends, and what a stage may change."""

from __future__ import annotations

import json

import pytest

from rlgen import stages
from rlgen.config import load
from rlgen.stages import Stages, Until
from rlgen.types import UserError

TWO = "[{reward: validity, steps: 5, until: sample/valid > 0.9 over 2}, {reward: novelty*validity, steps: 7}]"


def settings(*arguments):
    return load("finetune", list(arguments))


def test_a_run_without_stages_has_one():
    found = Stages(settings("steps=7", "reward=validity"))
    assert found.steps == found.last_step == 7 and found.stage.config.reward.expression == "validity"
    assert not found.over(6) and found.over(7) and not found.advance(7)


def test_stages_end_by_their_steps_or_their_condition():
    config = settings(f"stages={TWO}")
    assert config.steps == 12
    found = Stages(config)
    for step, valid in enumerate([0.95, 0.5, 0.95], 1):
        found.observe({"sample/valid": valid})
        assert not found.over(step)
    found.observe({"sample/valid": 0.91})  # mean of the last two 0.93
    assert found.over(4) and found.advance(4)
    assert found.stage.config.reward.expression == "novelty*validity"
    assert (found.steps, found.last_step) == (11, 11) and not found.over(10) and found.over(11)
    assert not found.advance(11) and found.over(11)


def test_stages_go_on_from_their_state():
    config = settings(f"stages={TWO}")
    first, second = Stages(config), Stages(config)
    first.observe({"sample/valid": 0.95})
    second.load_state(json.loads(json.dumps(first.state())))
    second.observe({"sample/valid": 0.95})
    assert second.over(2)
    second.advance(2)
    with pytest.raises(UserError, match="in stage 2, but there are only 1"):
        Stages(settings()).load_state(second.state())


def test_stages_of_a_file_with_settings_of_their_own(tmp_path):
    file = tmp_path / "curriculum.yaml"
    file.write_text("- {name: easy, reward: validity, steps: 3, off_prompt: 1, algorithm.temperature: 1.2,\n"
                    "   reward.validity.density: [0, 30], prompts.element: 0}\n- {steps: 4, reward: stability}\n")
    config = settings(f"stages={file}", "off_prompt=0.5")
    easy, last = Stages(config).stages
    assert (easy.name, easy.config.off_prompt, easy.config.algorithm.temperature) == ("easy", 1.0, 1.2)
    assert easy.config.reward.validity == {"density": [0, 30]} and easy.config.prompts.element == 0
    assert (last.name, last.config.off_prompt, last.config.reward.validity) == ("2", 0.5, {})
    file.unlink()
    assert Stages(config).steps == 7  # the settings hold the stages themselves: a resumed run needs no file


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nowhere.yaml", "stages=nowhere.yaml: no such file"),
        ("[{reward: validity}]", r"stages\[0\]: steps=None: must be given"),
        ("[{reward: validity, steps: 0}]", r"stages\[0\]: steps=0"),
        ("[validity, novelty]", "must be a list of stages"),
        ("[{steps: 3", "stages="),
        ("[{steps: 3, learning_rate: 1}]", r"stages\[0\]: learning_rate cannot change .*algorithm.temperature"),
        ("[{steps: 3, algorithm.temperature: hot}]", r"stages\[0\]: algorithm.temperature=hot: .*Float"),
        ("[{steps: 3, off_prompt: 2}]", r"stages\[0\]: off_prompt=2.0: must be between"),
        ("[{steps: 3, until: sample/valid is high}]", r"stages\[0\]: until: 'sample/valid is high' is not like"),
        ("[{steps: 3, until: a > 1.2.3}]", r"until: 'a > 1.2.3' is not like"),
    ],
)
def test_mistakes_are_named(text, says):
    with pytest.raises(UserError, match=says):
        Stages(settings(f"stages={text}"))


def test_steps_are_those_of_the_stages():
    with pytest.raises(UserError, match="steps= cannot be given with stages="):
        settings(f"stages={TWO}", "steps=3")


def test_a_condition_on_what_is_not_measured():
    found = Stages(settings("stages=[{steps: 3, until: sample/valdi > 1}]"))
    with pytest.raises(UserError, match="'sample/valdi' is not measured; measured: sample/valid"):
        found.observe({"sample/valid": 1.0})


@pytest.mark.parametrize(
    ("text", "values", "met"),
    [("x > 0.5", [0.4, 0.6], True), ("x>0.5", [0.5], False), ("x >= 0.5", [0.5], True), ("x < -1e-3", [-0.1], True),
     ("x <= 2 over 3", [9, 1, 2, 3], True), ("x <= 2 over 3", [1, 1], False), ("x > 0", [float("nan")], False)],
)  # fmt: skip
def test_conditions(text, values, met):
    assert Until.parse(text).met([float(v) for v in values]) is met


def test_a_mapping_with_stages_is_read_too():
    assert stages.read({"stages": [{"steps": 1}]}) == [{"steps": 1}]
