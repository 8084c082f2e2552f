"""A run directory holds what was logged, and a resumed run's files equal the uninterrupted one's."""

import json
import math
import time

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from pymatgen.core import Lattice, Structure

from rlgen import samples, tracking
from rlgen.spacegroup import from_spacegroup
from rlgen.types import CrystalError, RewardBreakdown, UserError

NACL = from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
BAD = CrystalError("parse", "cut off")
CONFIG = {"algorithm": {"name": "grpo", "rate": 2e-4}, "seed": 0}


def work(run, steps):
    for step in steps:
        run.log_scalars(step, {"reward/total": step / 10, "policy/kl": np.float32(0.5)})
        scores = [0.5, math.nan] if step % 2 else [None, None]  # a column may be empty in one step
        run.log_samples(step, [NACL, BAD], {"total": np.array([step, 0.0]), "stability": scores})


def test_a_run_holds_what_was_logged(tmp_path):
    with tracking.Run(tmp_path / "run", OmegaConf.create(CONFIG)) as run:
        work(run, [1, 2])
        run.log_scalars(3, {"x": math.nan, "y": 1})
        run.log_text(3, "note", "a line")
        run.log_figure(3, "crystal", tracking.crystal_picture(NACL))
    folder = tmp_path / "run"
    assert OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")) == CONFIG
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 1, "reward/total": 0.1, "policy/kl": 0.5}
    assert lines[2] == {"step": 3, "x": None, "y": 1.0}
    table = pd.read_parquet(folder / "samples.parquet")
    assert table[["step", "index"]].values.tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]]
    assert table["error"].tolist()[1] == "parse: cut off"
    names = ["config.yaml", "metrics.jsonl", "samples.parquet", "tensorboard"]
    assert sorted(p.name for p in folder.iterdir()) == names
    back = samples.read(folder)
    assert [isinstance(c, Structure) for c in back.crystals] == [True, False, True, False]


def scalar_steps(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(e.step, round(e.value, 6)) for e in events.Scalars(name)], events.Tags()


@pytest.mark.parametrize("closed", [True, False], ids=["stopped", "killed"])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, closed):
    with tracking.Run(tmp_path / "whole", CONFIG) as run:
        work(run, range(1, 8))

    first = tracking.Run(tmp_path / "cut", CONFIG)
    work(first, range(1, 7))
    if closed:
        first.close()
    else:  # a kill leaves a torn line, and the events that were flushed
        first._writer.close()
        with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
            file.write('{"step": 7, "reward/to')
    time.sleep(1.1)  # TensorBoard reads files in the order of their names, which have the second they begin in
    with tracking.Run(tmp_path / "cut", CONFIG, resume=4) as run:
        work(run, range(5, 8))

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert (whole / "metrics.jsonl").read_bytes() == (cut / "metrics.jsonl").read_bytes()
    assert (whole / "config.yaml").read_bytes() == (cut / "config.yaml").read_bytes()
    pd.testing.assert_frame_equal(pd.read_parquet(whole / "samples.parquet"), pd.read_parquet(cut / "samples.parquet"))
    assert scalar_steps(whole, "reward/total")[0] == scalar_steps(cut, "reward/total")[0]


def test_notes_are_kept_and_those_of_dropped_steps_are_not(tmp_path, capsys):
    with tracking.Run(tmp_path, CONFIG, tensorboard=False) as run:
        for step in (2, 5):
            run.log_scalars(step, {"x": 1})
            run.note(step, f"é {step}")
    assert "step 5: é 5" in capsys.readouterr().out
    with tracking.Run(tmp_path, CONFIG, resume=4, tensorboard=False) as run:
        assert run.notes() == ["step 2: é 2"]


def test_samples_of_a_run_that_still_goes_on(tmp_path):
    run = tracking.Run(tmp_path, CONFIG, tensorboard=False)
    work(run, [1, 2])
    assert len(samples.read(tmp_path).crystals) == 4
    run.close()
    run = tracking.Run(tmp_path, CONFIG, resume=2, tensorboard=False)
    work(run, [3])
    back = samples.read(tmp_path)
    assert back.columns["step"].tolist() == [1, 1, 2, 2, 3, 3]
    run.close()


def test_killed_between_merging_and_removing_counts_nothing_twice(tmp_path, monkeypatch):
    run = tracking.Run(tmp_path, CONFIG, tensorboard=False)
    work(run, [1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(tracking.shutil, "rmtree", lambda *_, **__: None)
        run.merge_samples()
    with tracking.Run(tmp_path, CONFIG, resume=2, tensorboard=False) as again:
        work(again, [3])
    assert pd.read_parquet(tmp_path / "samples.parquet")["step"].tolist() == [1, 1, 2, 2, 3, 3]


def test_directories_are_not_mixed(tmp_path):
    tracking.Run(tmp_path / "a", CONFIG, tensorboard=False).close()
    with pytest.raises(UserError, match="already holds a run"):
        tracking.Run(tmp_path / "a", CONFIG, tensorboard=False)
    with pytest.raises(UserError, match="no run to resume"):
        tracking.Run(tmp_path / "b", CONFIG, resume=3)
    assert not (tmp_path / "b").exists()


def test_closing_after_an_error_keeps_the_samples(tmp_path):
    with pytest.raises(RuntimeError), tracking.Run(tmp_path, CONFIG, tensorboard=False) as run:
        work(run, [1])
        raise RuntimeError
    assert (tmp_path / "samples.parquet").exists()


def test_breakdown_to_columns_and_scalars():
    breakdown = RewardBreakdown(
        names=("novelty", "stability"),
        raw=np.array([[1.0, 0.05], [1.0, np.nan], [np.nan, np.nan]]),
        score=np.array([[1.0, 0.8], [1.0, np.nan], [np.nan, np.nan]]),
        total=np.array([0.9, 0.5, 0.0]),
        status=np.array(["ok", "failed", "invalid"]),
        reason=["", "stability: no hull", "geometry: too close"],
        extra={"e_above_hull": np.array([0.05, np.nan, np.nan])},
        counters={"restarts": 1, "guard/overlap": 3},
    )
    columns = tracking.breakdown_columns(breakdown)
    assert list(columns) == [
        "total", "status", "reason", "novelty", "novelty_raw", "stability", "stability_raw", "e_above_hull"
    ]  # fmt: skip
    scalars = tracking.breakdown_scalars(breakdown)
    assert scalars["reward/total"] == pytest.approx(1.4 / 3)
    assert scalars["reward/failed_fraction"] == pytest.approx(1 / 3)
    assert scalars["sample/valid"] == pytest.approx(2 / 3)
    assert (scalars["reward/novelty"], scalars["reward/stability_raw"]) == (1.0, 0.05)
    assert scalars["pool/restarts"] == 1 and scalars["guard/overlap"] == 3


def test_pictures_are_drawn(tmp_path):
    figure = tracking.crystal_picture(NACL)
    figure.savefig(tmp_path / "crystal.png")
    tracking.energy_histogram([0.9, math.nan, 5.0], [0.05, -0.01]).savefig(tmp_path / "energies.png")
    tracking.energy_histogram([]).savefig(tmp_path / "empty.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 3000 for name in ("crystal", "energies", "empty"))
    assert len(figure.axes[0].collections[0].get_offsets()) == 27  # 14 Na and 13 Cl with those on opposite faces
