"""Checkpoints survive kills, and state comes back exactly."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rlgen import checkpoint


def writer(text):
    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(text)

    return write


def text_of(path):
    return (path / "model" / "weights").read_text()


def test_save_and_latest(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    for step in (5, 10, 100):
        path = checkpoint.save(tmp_path, step, writer(str(step)))
        assert path == tmp_path / "checkpoints" / f"step_{step}" == checkpoint.latest(tmp_path)
        assert checkpoint.step_of(path) == step
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_10", "step_100"]


def test_failing_write_leaves_the_last_good_one(tmp_path):
    checkpoint.save(tmp_path, 1, writer("good"))

    def dies(folder: Path) -> None:
        writer("half")(folder)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        checkpoint.save(tmp_path, 2, dies)
    assert text_of(checkpoint.latest(tmp_path)) == "good"
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_1"]


@pytest.mark.parametrize("moment", range(8))
def test_kill_at_any_rename_leaves_a_whole_checkpoint(tmp_path, monkeypatch, moment):
    """Every rename is a moment to die at: nothing after it happens, not even the cleaning up."""
    for step in (1, 2):
        checkpoint.save(tmp_path, step, writer("good"))
    rename, remaining = Path.rename, [moment]

    class Killed(BaseException):
        pass

    def dying(self, target):
        if remaining[0] == 0:
            raise Killed
        remaining[0] -= 1
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        try:
            checkpoint.save(tmp_path, 2, writer("new"))
        except Killed:
            pass
        else:
            assert moment > 2  # it had as few renames as that
    assert text_of(checkpoint.latest(tmp_path)) in ("good", "new")
    checkpoint.save(tmp_path, 3, writer("later"))
    assert text_of(checkpoint.latest(tmp_path)) == "later"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) in (["step_2", "step_3"], ["step_1", "step_3"])


def test_unfinished_folders_are_ignored_and_cleaned(tmp_path):
    checkpoint.save(tmp_path, 3, writer("good"))
    (tmp_path / "checkpoints" / ".tmp-step_4").mkdir()
    (tmp_path / "checkpoints" / "step_5.partial").mkdir()
    assert checkpoint.latest(tmp_path).name == "step_3"
    checkpoint.save(tmp_path, 4, writer("next"))
    assert not (tmp_path / "checkpoints" / ".tmp-step_4").exists()


def test_going_back_removes_the_abandoned_future(tmp_path):
    for step in (10, 20):
        checkpoint.save(tmp_path, step, writer(str(step)))
    checkpoint.save(tmp_path, 15, writer("15"))
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step_10", "step_15"]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (np.ndarray, np.generic)):
        return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b


def test_state_round_trip_is_exact(tmp_path):
    shared = torch.arange(6.0)
    state = {
        "tuple": (1, (2.5, None), [True, "ü"]),
        3: {"deep": {(1, "a"): shared}},
        "a/b": shared,
        "a": {"b": shared[::2], "empty": torch.zeros(0, 3), "scalar": torch.tensor(7, dtype=torch.int64)},
        "floats": [0.1, 1e-320, math.inf, -math.inf, math.nan, -0.0],
        "big": 2**127 + 1,
        "numpy": [np.arange(3, dtype=np.uint32), np.float64(0.1), np.bool_(True), np.array(2.0)],
        "bf16": torch.tensor([1.5], dtype=torch.bfloat16),
        "__type__": "a user's own key",
        "": [{}, [], ()],
    }
    checkpoint.save_state(tmp_path / "state", state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.json", "state.safetensors"]
    assert same(state, checkpoint.load_state(tmp_path / "state"))


def test_state_of_nothing_but_a_number(tmp_path):
    checkpoint.save_state(tmp_path / "n", 3)
    assert checkpoint.load_state(tmp_path / "n") == 3


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array(["text"]), {"x": [torch.float32]}])
def test_what_cannot_be_kept_is_named(tmp_path, value):
    with pytest.raises(TypeError, match="cannot store"):
        checkpoint.save_state(tmp_path / "state", {"outer": value})
