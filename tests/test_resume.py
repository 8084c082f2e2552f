"""A run that is killed at any moment and goes on leaves, to the byte, what an uninterrupted run leaves.

The run has everything that a checkpoint must keep: a value head, stages, a pipeline, replayed sequences, and collapses
that are forced and rolled back.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from policies.representations import make

CONTEXT = multiprocessing.get_context("forkserver")
# What takes seconds to import is imported once; every start of a run is a fork.
CONTEXT.set_forkserver_preload(["rlgen.finetune", "rlgen.algorithms.ppo", "accelerate", "hydra", "pyarrow.parquet",
                                "torch.utils.tensorboard", "matplotlib.backends.backend_agg", "matplotlib.figure",
                                "pymatgen.analysis.prototypes", "rewards.uniqueness"])
STAGES = ("[{reward: validity, steps: 5, until: sample/valid >= 0 over 3}, "
          "{reward: validity+uniqueness, steps: 9, algorithm.temperature: 0.9}]")


def settings(policy: Path, output: Path) -> list[str]:
    """3 and up to 9 steps. The KL is always too high: the guard rolls back twice, each window anew, and stops."""
    return [f"policy={policy}", f"output={output}", f"stages={STAGES}", "workers=0", "device=cpu", "energy=chgnet",
            "algorithm=ppo", "batch=8", "algorithm.group_size=2", "replay.fraction=0.5", "evaluate=0", "real_every=0",
            "pipeline=1", "checkpoint_every=3", "prompts.diversity=0.9",
            "collapse.window=2", "collapse.above.policy/kl=-1", "collapse.rollbacks=2",
            "algorithm.learning_rate=1e-3", "reward.validity.volume_per_atom=[0,1e9]",
            "reward.validity.density=[0,1e9]", "reward.validity.max_length=1e9"]


def run(arguments: list[str], folder: Path, die_at: int, counted: Path | None = None) -> None:
    """In a process of its own: fine-tune, and die at that file operation in the run's folder (0: do not)."""
    from rlgen import finetune
    from rlgen.config import load

    operations = 0

    def count(event: str, details: tuple) -> None:
        nonlocal operations
        named = [str(d) for d in details[:2] if isinstance(d, (str, os.PathLike))]
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and any(
            name.startswith(str(folder)) for name in named
        ):
            operations += 1
            if operations == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    sys.addaudithook(count)
    finetune.run(load("finetune", arguments))
    if counted is not None:
        counted.write_text(str(operations))


def start(arguments: list[str], folder: Path, die_at: int = 0, seconds: float | None = None, counted: Path | None = None
          ) -> int:
    """The exit code of a run, which is killed after so many seconds, or kills itself."""
    process = CONTEXT.Process(target=run, args=(arguments, folder, die_at, counted))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode or 0


def metrics(folder: Path) -> list[str]:
    """The lines of metrics.jsonl as they are, but for the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({k: v for k, v in line.items() if not k.startswith("time/")}) for line in lines]


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    CrystalPolicy.create(make("atoms", max_atoms=5), hidden_size=16, layers=1, heads=2,
                         intermediate_size=32).save_pretrained(folder)
    PromptTable.of([225, 221, 139], [[11, 17], [22, 38, 8, 8, 8], [29]]).save(folder)
    return folder


def test_killed_ten_times_it_is_the_uninterrupted_run(policy, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    first = CONTEXT.Process(target=print)
    first.start()
    first.join()  # the server has imported everything
    began = time.monotonic()
    assert start(settings(policy, whole), whole, counted=tmp_path / "operations") == 0
    seconds, operations = time.monotonic() - began, int((tmp_path / "operations").read_text())
    notes = (whole / "notes.jsonl").read_text()
    assert "stage 2 begins" in notes and "rollback 2 of at most 2" in notes and "the run stops" in notes

    rng, killed = random.Random(0), 0
    for attempt in range(60):
        arguments = [f"resume={cut}"] if (cut / "config.yaml").exists() else settings(policy, cut)
        if killed == 10:
            assert start(arguments, cut) == 0
            break
        if attempt % 2:  # by the clock, anywhere
            code = start(arguments, cut, seconds=rng.uniform(0.1, 0.5) * seconds)
        else:  # while it opens, renames or removes a file: mostly in the middle of a checkpoint
            code = start(arguments, cut, die_at=rng.randrange(1, operations // 4))
        killed += code == -signal.SIGKILL
    assert killed == 10
    assert metrics(cut) == metrics(whole)
    assert (cut / "notes.jsonl").read_text() == notes
    pd.testing.assert_frame_equal(*(pd.read_parquet(folder / "samples.parquet") for folder in (cut, whole)))
    ours, theirs = (load_file(folder / "policy" / "model.safetensors") for folder in (cut, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs)
