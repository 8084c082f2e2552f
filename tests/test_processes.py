"""Two processes that learn one policy make the update of one, and leave one run."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from toy_learning import tiny
from two_processes import ALGORITHMS, one_of_two, update

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from policies.representations import make

HERE = Path(__file__).resolve().parent


def launch(*arguments: str) -> str:
    """Two processes on this machine's CPUs (`accelerate launch` starts several on GPUs only)."""
    path = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


def test_two_processes_make_the_update_of_one(tmp_path):
    update(tmp_path / "one", Accelerator(cpu=True))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    # What takes seconds to import is imported once.
    context.set_forkserver_preload(["accelerate", "policies.sampler", "rlgen.algorithms.gvpo", "rlgen.algorithms.ppo"])
    pair = [context.Process(target=one_of_two, args=(rank, port, tmp_path / "two")) for rank in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(300)
        assert process.exitcode == 0
    start = tiny().state_dict()
    for name in ALGORITHMS:
        one, two = (torch.load(tmp_path / folder / f"{name}.pt") for folder in ("one", "two"))
        for key, value in one.items():
            moved = (value - start[key]).norm()
            assert moved > 0 and (two[key] - value).norm() < 1e-3 * moved, (name, key)
        one, two = (json.loads((tmp_path / folder / f"{name}.json").read_text()) for folder in ("one", "two"))
        assert two == {key: pytest.approx(value, rel=1e-3, abs=1e-6) for key, value in one.items()}


def test_a_run_of_two_processes_is_one_run(tmp_path):
    torch.manual_seed(0)
    CrystalPolicy.create(make("atoms"), hidden_size=32, layers=2, heads=2, intermediate_size=64).save_pretrained(
        tmp_path / "start")
    PromptTable.of([225, 221, 139], [[11, 17], [22, 38, 8, 8, 8], [29]]).save(tmp_path / "start")
    shown = launch("-m", "rlgen.finetune", f"policy={tmp_path / 'start'}", f"output={tmp_path / 'run'}", "workers=0",
                   "device=cpu", "energy=chgnet", "batch=12", "algorithm.group_size=4", "evaluate=0", "steps=2",
                   "reward=validity+uniqueness", "reward.validity.volume_per_atom=[0,1e9]",
                   "reward.validity.density=[0,1e9]", "reward.validity.max_length=1e9", "checkpoint_every=1",
                   "real_every=0")
    assert shown.count("run:   ") == 1  # only the first speaks
    table = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    assert table["step"].tolist() == [1] * 12 + [2] * 12
    asked = [json.loads(c) if isinstance(c, str) else c for c in table["condition"]]
    assert all(asked[i] == asked[4 * (i // 4)] for i in range(24))  # groups are whole, in order
    assert table["cif"].nunique() > 16  # the processes do not draw the same
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps] == [1, 2] and abs(steps[0]["policy/kl"]) < 1e-6 < steps[1]["policy/kl"]
    trained, _ = CrystalPolicy.load(str(tmp_path / "run" / "policy"))
    kept, _ = CrystalPolicy.load(str(tmp_path / "run" / "checkpoints" / "step_2" / "policy"))
    assert all(map(torch.equal, trained.parameters(), kept.parameters()))
