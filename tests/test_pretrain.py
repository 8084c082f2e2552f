"""Pretraining learns, goes on after a kill or Ctrl-C as if nothing had been, and names the user's mistakes."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CRYSTALS
from pymatgen.core import Lattice, Structure
from safetensors.torch import load_file

from policies.model import CrystalPolicy
from policies.representations import REPRESENTATIONS, make
from rlgen import checkpoint, config, pretrain
from rlgen.config import load
from rlgen.data import Record
from rlgen.encoded import encode
from rlgen.types import UserError

ATOMS = make("atoms")
SMALL = ["policy=tiny", "policy.hidden_size=32", "policy.layers=2", "policy.heads=2", "policy.intermediate_size=64"]


@pytest.fixture(autouse=True)
def as_found():
    """A run takes over Ctrl-C and the number of threads."""
    handler, threads = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    yield
    signal.signal(signal.SIGINT, handler)
    torch.set_num_threads(threads)


# Steps


@pytest.mark.parametrize(("warmup", "decay"), [(10, 0.4), (0, 0.4), (10, 1.0), (10, 0.0)])
def test_the_learning_rate_rises_stays_and_falls(warmup, decay):
    settings = load("pretrain", ["steps=100", f"warmup={warmup}", f"decay={decay}", "learning_rate=0.5"])
    rates = np.array([pretrain.learning_rate(step, settings) for step in range(100)])
    assert rates[:warmup].tolist() == pytest.approx([0.05 * (i + 1) for i in range(warmup)])
    falls = 100 - max(round(decay * 100), 1)
    assert (rates[warmup : max(falls, warmup)] == 0.5).all()
    assert (np.diff(rates[max(falls, warmup) :]) < 0).all()
    if decay:
        middle = round(100 - decay * 50)
        assert rates[middle] == pytest.approx(0.25)
        assert 0 < rates[-1] < 0.005


def test_precision():
    cpu = torch.device("cpu")
    assert pretrain.precision("fp32", cpu) == torch.float32 and pretrain.precision("bf16", cpu) == torch.bfloat16
    assert pretrain.precision("auto", torch.device("cuda")) == torch.bfloat16
    with pytest.raises(UserError, match="known: auto, bf16, fp32"):
        pretrain.precision("fp16", cpu)


def prototypes() -> list[Record]:
    """64 crystals: rock salt, zinc blende, fluorite and caesium chloride of 16 pairs of elements."""
    face_centred, primitive = (np.ones((3, 3)) - np.eye(3)) / 2, np.eye(3)
    types = {
        "rock salt": (face_centred, 4.7, [0.5]),
        "zinc blende": (face_centred, 4.9, [0.25]),
        "fluorite": (face_centred, 5.1, [0.25, 0.75]),
        "caesium chloride": (primitive, 3.0, [0.5]),
    }
    pairs = list(itertools.product(["Li", "Na", "K", "Rb"], ["F", "Cl", "Br", "I"]))
    return [
        Record(f"{cation}{anion} {name}", Structure(Lattice(cell * (length + 0.1 * i)), [cation, *[anion] * len(sites)],
                                                    [[0] * 3, *([x] * 3 for x in sites)]))
        for name, (cell, length, sites) in types.items() for i, (cation, anion) in enumerate(pairs)
    ]  # fmt: skip


def trainer(*arguments: str) -> pretrain.Trainer:
    settings = load("pretrain", [*SMALL, "precision=fp32", "warmup=5", *arguments])
    return pretrain.Trainer(pretrain.build(settings, ATOMS), settings, torch.device("cpu"))


def test_a_policy_learns_crystals_and_heeds_what_is_asked():
    torch.set_num_threads(1)
    train = encode(prototypes(), ATOMS)
    assert len(train) == 64
    learner = trainer("steps=60", "batch=32", "learning_rate=2e-2", "policy.dropout=0", "ema=0.9")
    batches = iter(pretrain.batches(train, ATOMS, learner.config, learner.device))
    before, _ = pretrain.nll(learner.policy, train)
    losses = [learner.update(next(batches))["pretrain/loss"] for _ in range(60)]
    after, per_atom = pretrain.nll(learner.policy, train)
    averaged, _ = pretrain.nll(learner.average, train)
    # Untrained, every legal token is about as likely; then the lattice's shape, the sites and the elements are learnt.
    assert before > 80 and losses[0] > 3.5
    assert np.mean(losses[-5:]) < 1.2 and after < 30 and averaged < 30
    assert per_atom == pytest.approx(after * len(train) / train.atoms)

    # A crystal is less likely under another one's prompt: with 90° where 60° are right, and the other way round.
    ids, labels = train.batch(np.flatnonzero(train.prompts.n_atoms == 2), ATOMS, np.random.default_rng(0), 0.0)
    wrong = ids.clone()
    swap = {225: 221, 216: 221, 221: 225}
    first = ATOMS.first["space_group"]
    wrong[:, 1] = torch.tensor([swap[int(token) - first] + first for token in ids[:, 1]])
    with torch.no_grad():
        right, other = (float(learner.policy.eval()(x, labels=labels).loss) for x in (ids, wrong))
    assert other > right + 0.1


def test_other_processes_make_the_same_batches():
    train = encode(prototypes(), ATOMS)
    found = []
    for workers in (0, 1):
        settings = load("pretrain", [*SMALL, "representation=atoms", "batch=16", f"workers={workers}"])
        made = iter(pretrain.batches(train, ATOMS, settings, torch.device("cpu"), start=3))
        found.append([next(made) for _ in range(3)])
    for here, there in zip(*found, strict=True):
        assert here.seed == there.seed
        assert all(torch.equal(a, b) for a, b in zip(here[:3], there[:3], strict=True))
        assert torch.equal(here.legal, ATOMS.masks(here.ids))
    assert len({batch.seed for batch in found[0]}) == 3


def test_a_step_by_hand():
    """One update of two crystals equals AdamW applied to the gradient of the mean NLL, clipped."""
    train = encode(prototypes()[:2], ATOMS)
    learner = trainer("condition_dropout=0", "policy.dropout=0", "weight_decay=0", "max_grad_norm=0.1", "ema=0.5")
    before = {name: p.detach().clone() for name, p in learner.policy.named_parameters()}
    seeded = np.random.default_rng([0, 1, 0])
    seeded.integers(2**62)  # the seed of dropout is drawn first
    ids, labels = train.batch([0, 1], ATOMS, seeded, 0.0)
    learner.policy(ids, labels=labels).loss.backward()
    gradients = {name: p.grad.clone() for name, p in learner.policy.named_parameters()}
    learner.policy.zero_grad()
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
    scalars = learner.update(pretrain.Batches(train, ATOMS, 0, 0.0, 0.0)[0, np.array([0, 1])])
    assert scalars["pretrain/grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert scalars["pretrain/tokens"] == int((labels != -100).sum())
    rate = scalars["pretrain/learning_rate"]
    for name, p in learner.policy.named_parameters():
        # AdamW's first step is the gradient divided by its own size.
        clipped = gradients[name] * min(1.0, 0.1 / norm)
        expected = before[name] - rate * clipped / (clipped.abs() + 1e-8)
        assert torch.allclose(p, expected, atol=rate * 0.02), name
        decay = min(0.5, 1 / 11)
        average = dict(learner.average.named_parameters())[name]
        assert torch.allclose(average, before[name] * decay + p.detach() * (1 - decay), atol=1e-6), name


# Whole runs


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built crystals at three sizes, in a CSV as users have it."""
    file = tmp_path_factory.mktemp("data") / "crystals.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["material_id", "cif"])
        for scale, (name, s) in itertools.product((0.98, 1.0, 1.02), CRYSTALS.items()):
            scaled = Structure(Lattice(s.lattice.matrix * scale), s.species, s.frac_coords)
            writer.writerow([f"{name} {scale}", scaled.to(fmt="cif")])
    return file


def arguments(table: Path, output: Path, steps: int = 8) -> list[str]:
    return [*SMALL, f"data={table}", f"output={output}", f"steps={steps}", "batch=8", "warmup=2", "sample_every=0",
            "evaluate_every=2", "checkpoint_every=4", "device=cpu", "precision=fp32", "threads=1"]  # fmt: skip


def metrics(run: Path) -> list[dict]:
    """The lines of a run, without how long things took."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """Bit-identical weights, optimiser and best policy, and the same curves."""
    assert metrics(one) == metrics(other)
    for folder in ("policy", "checkpoints/" + checkpoint.latest(one).name):
        files = sorted(p.relative_to(one) for p in (one / folder).rglob("*.safetensors"))
        assert files and files == sorted(p.relative_to(other) for p in (other / folder).rglob("*.safetensors"))
        for file in files:
            first, second = load_file(one / file), load_file(other / file)
            assert first.keys() == second.keys()
            assert all(torch.equal(first[k], second[k]) for k in first), file
    states = [checkpoint.load_state(checkpoint.latest(run) / "state") for run in (one, other)]
    for state in states:
        state.pop("seconds")  # how long it took
        state.pop("optimiser")  # its tensors are compared above
    assert states[0] == states[1]


@pytest.fixture(scope="module")
def whole(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps in one go."""
    handler, threads = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    output = tmp_path_factory.mktemp("whole") / "run"
    pretrain.run(load("pretrain", arguments(table, output)))
    signal.signal(signal.SIGINT, handler)
    torch.set_num_threads(threads)
    return output


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_every_representation_can_be_pretrained(table, tmp_path, name):
    pretrain.run(load("pretrain", [*arguments(table, tmp_path / "run"), f"representation={name}", "steps=4",
                                   "evaluate_every=4", "checkpoint_every=4"]))
    policy, _ = CrystalPolicy.load(str(tmp_path / "run/policy"), name)
    assert policy.representation.name == name
    assert all(line["pretrain/loss"] > 0 for line in metrics(tmp_path / "run"))


def test_a_run_leaves_what_it_says(whole, table):
    lines = metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert ["pretrain/nll" in line for line in lines] == [False, True] * 4
    assert all(line["pretrain/loss"] > 0 and line["pretrain/grad_norm"] > 0 for line in lines)
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["step_4", "step_8"]
    assert list((whole / "tensorboard").glob("events*"))
    policy, prompts = CrystalPolicy.load(str(whole / "policy"))
    card = (whole / "policy/README.md").read_text()
    assert f"| parameters | {sum(p.numel() for p in policy.parameters()):,} |" in card
    assert f"{table}: 26 crystals to learn from, 2 to validate on" in card
    assert len(prompts) == 26  # 30 crystals, 5 % of them each to validate and to test
    assert not [p for p in whole.rglob("*") if p.suffix in (".pt", ".pth", ".pkl", ".bin", ".ckpt")]
    assert not list(whole.glob(".*"))


@pytest.mark.parametrize(("validation", "best"), [([4.0, 3.0, 2.0, 1.0], 8), ([4.0, 1.0, 2.0, 3.0], 4)])
def test_the_best_policy_is_the_one_kept(table, tmp_path, monkeypatch, validation, best):
    run, values = tmp_path / "run", iter(validation)
    # What is measured while training, and at the end of the policy that was kept.
    monkeypatch.setattr(pretrain, "nll", lambda *_, limit=None: (next(values) if limit else min(validation), 1.0))
    pretrain.run(load("pretrain", [*arguments(table, run), "checkpoint_every=2"]))
    measured = {line["step"]: line["pretrain/nll"] for line in metrics(run) if "pretrain/nll" in line}
    assert min(measured, key=measured.get) == best
    assert f"{min(validation):.2f}" in (run / "policy/README.md").read_text()
    average = load_file(run / "checkpoints/step_8/average/model.safetensors")
    kept = load_file(run / "policy/model.safetensors")
    assert all(torch.equal(average[k], kept[k]) for k in kept) == (best == 8)


@pytest.mark.parametrize("dies_at", [5, 7])
def test_a_killed_run_goes_on_as_if_nothing_had_been(whole, table, tmp_path, monkeypatch, dies_at):
    """It dies after the checkpoint of step 4, with later steps in its log and perhaps a later best policy."""

    class Killed(BaseException):
        pass

    def update(self, *rest):
        if self.step == dies_at:
            raise Killed
        return original(self, *rest)

    original = pretrain.Trainer.update
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(pretrain.Trainer, "update", update)
        pretrain.run(load("pretrain", arguments(table, tmp_path / "run")))
    assert len(metrics(tmp_path / "run")) == dies_at
    assert checkpoint.latest(tmp_path / "run").name == "step_4"
    pretrain.run(load("pretrain", [f"resume={tmp_path / 'run'}"]))
    assert_same_run(whole, tmp_path / "run")


def test_another_seed_is_another_run(whole, table, tmp_path):
    pretrain.run(load("pretrain", [*arguments(table, tmp_path / "run"), "seed=1"]))
    assert metrics(tmp_path / "run")[0]["pretrain/loss"] != metrics(whole)[0]["pretrain/loss"]


def test_a_run_is_not_overwritten(whole, table):
    before = (whole / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        pretrain.run(load("pretrain", arguments(table, whole)))
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_it_stops_when_validation_gets_no_better(table, tmp_path, capsys):
    extra = ["patience=2", "learning_rate=0", "weight_decay=0"]
    pretrain.run(load("pretrain", [*arguments(table, tmp_path / "run", steps=50), *extra]))
    assert metrics(tmp_path / "run")[-1]["step"] == 6  # best at 2, no better at 4 and 6
    assert "has not fallen for 2 evaluations" in capsys.readouterr().out


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(table, tmp_path):
    cut, steps = tmp_path / "cut", 60

    def given(output: Path) -> list[str]:
        return [*arguments(table, output, steps), "patience=1000", "checkpoint_every=1000"]

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "rlgen.pretrain", *given(cut)], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)  # fmt: skip
    log, deadline = cut / "metrics.jsonl", time.monotonic() + 120
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 3):
        assert time.monotonic() < deadline, "no step in two minutes"
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err, err
    reached = checkpoint.step_of(checkpoint.latest(cut))
    assert 3 <= reached < steps and metrics(cut)[-1]["step"] == reached
    assert f"interrupted at step {reached}: go on with python -m rlgen.pretrain resume={cut}" in " ".join(out.split())

    pretrain.run(load("pretrain", [f"resume={cut}"]))
    pretrain.run(load("pretrain", given(tmp_path / "whole")))
    assert_same_run(tmp_path / "whole", cut)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["stpes=3"], "unknown key 'stpes'; did you mean 'steps'?\nknown keys: policy.representation"),
        (["steps=many"], "steps=many"),
        (["policy=huge"], "unknown policy=huge; known: base, compact, hf, small, tiny"),
        (["policy.representation=molecules"], "unknown representation 'molecules'; known: atoms"),
        (["policy.representation_parameters.x=1"], "policy.representation_parameters: "),
        (["policy.hidden_size=30"], "hidden_size=30 must be a multiple of twice heads=4"),
        (["data=nowhere.csv"], "no data set and no file is called 'nowhere.csv'"),
        (["hindsight=written.csv"], "add e_above_hull or stability to conditions="),
        (["limit=2"], "there are no crystals to write"),
        (["precision=fp16"], "precision='fp16'; known: auto, bf16, fp32"),
        (["device=gpu"], "device='gpu' cannot be used here; known: auto, cpu, cuda"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_end_with_two_and_one_message(table, tmp_path, monkeypatch, capsys, wrong, says):
    given = [a for a in arguments(table, tmp_path / "run") if a.split("=")[0] not in ("policy.heads",)]
    monkeypatch.setattr(sys, "argv", ["rlgen.pretrain", *given, *wrong])
    with pytest.raises(SystemExit) as end:
        config.main("pretrain", pretrain.run)
    assert end.value.code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_nothing_to_resume_is_said_without_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rlgen.pretrain", f"resume={tmp_path}"])
    with pytest.raises(SystemExit) as end:
        config.main("pretrain", pretrain.run)
    assert end.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said == f"rlgen.pretrain: resume={tmp_path}: no run there (config.yaml is missing)"


# From a policy


def test_a_policy_learns_on_and_can_be_asked_for_more(table, tmp_path):
    """New properties change nothing that the policy says as long as nothing is known of them; what it had keeps its
    scale and its embedding."""
    given = [*SMALL, "representation=atoms", f"data={table}", "batch=4", "sample_every=0", "device=cpu"]
    pretrain.run(load("pretrain", [*given, "steps=3", "conditions=density", f"output={tmp_path / 'one'}"]))
    one, _ = CrystalPolicy.load(str(tmp_path / "one/policy"))
    again = ["policy=trained", f"policy.start={tmp_path / 'one/policy'}", "representation=atoms",
             "conditions=hhi_production,density"]
    settings = load("pretrain", [*given[len(SMALL) + 1 :], *again, "steps=1", f"output={tmp_path / 'two'}"])
    dataset = pretrain.data.load(settings.data)
    representation, *_ = pretrain.written(settings, dataset, one)
    two = pretrain.build(settings, representation, one)
    assert representation.conditions["density"] == one.representation.conditions["density"]
    assert list(representation.conditions) == ["density", "hhi_production"]
    for token in ("density[3]", "density?", "Na", "<eos>"):
        old, new = one.representation.vocabulary.index(token), two.representation.vocabulary.index(token)
        assert torch.equal(one.embed.weight[old], two.embed.weight[new])
    assert two.config.hidden_size == 32
    pretrain.run(settings)
    three, prompts = CrystalPolicy.load(str(tmp_path / "two/policy"))
    assert set(prompts.properties) == {"hhi_production", "density"} and three.config.layers == 2
    card = (tmp_path / "two/policy/README.md").read_text()
    assert "\npolicy=trained\n" in card and f"\npolicy.start={tmp_path / 'one/policy'}\n" in card
    with pytest.raises(UserError, match="write in another way"):
        one.asked_for(make("atoms", max_atoms=7))
    with pytest.raises(UserError, match="writes crystals as atoms, not orbits"):
        pretrain.run(load("pretrain", [f"data={table}", *again[:2]]))


def test_a_policy_that_learns_on_keeps_what_it_can_be_asked(table, tmp_path):
    """Also what the data at hand cannot tell: it stays unknown of them."""
    rows = list(csv.DictReader(table.open()))
    with (tmp_path / "hard.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "hardness"])
        writer.writeheader()
        writer.writerows({**row, "hardness": i} for i, row in enumerate(rows))
    given = ["representation=atoms", "batch=4", "sample_every=0", "device=cpu", "steps=1"]
    pretrain.run(load("pretrain", [*SMALL, *given, f"data={tmp_path / 'hard.csv'}", "conditions=density,hardness",
                                   f"output={tmp_path / 'one'}"]))
    start = ["policy=trained", f"policy.start={tmp_path / 'one/policy'}"]
    pretrain.run(load("pretrain", [*start, *given, f"data={table}", f"output={tmp_path / 'two'}"]))
    one, _ = CrystalPolicy.load(str(tmp_path / "one/policy"))
    two, prompts = CrystalPolicy.load(str(tmp_path / "two/policy"))
    assert two.representation.conditions == one.representation.conditions
    assert np.isnan(prompts.properties["hardness"]).all() and np.isfinite(prompts.properties["density"]).all()
    with pytest.raises(UserError, match="the data have no column hardness"):
        pretrain.run(load("pretrain", [*start, *given, f"data={table}", "conditions=hardness",
                                       f"output={tmp_path / 'three'}"]))


def test_hindsight_is_learnt_from_and_asked_for_by_nobody(table, tmp_path, capsys):
    """What a policy wrote widens the scale of energies; prompts and validation stay the data's."""
    rows = list(csv.DictReader(table.open()))
    for name, energies in (("real", [0.01, 0.0]), ("wrote", [0.4, 0.8, ""])):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "e_above_hull"])
            writer.writeheader()
            writer.writerows({**row, "e_above_hull": energies[i % len(energies)]} for i, row in enumerate(rows))
    given = [*SMALL, "representation=atoms", f"data={tmp_path / 'real.csv'}", "batch=4", "sample_every=0", "steps=2",
             "device=cpu", "conditions=e_above_hull,density"]
    settings = load("pretrain", [*given, f"hindsight={tmp_path / 'wrote.csv'}", f"output={tmp_path / 'run'}"])
    representation, train, _ = pretrain.written(settings, pretrain.data.load(settings.data))
    assert train.hindsight is not None and 0 < len(train.hindsight) < len(rows)
    assert set(train.hindsight.prompts.properties["e_above_hull"].tolist()) == {np.float32(0.4), np.float32(0.8)}
    assert representation.conditions["e_above_hull"].high > 0.5
    pretrain.run(settings)
    said = capsys.readouterr().out
    count = len(train.hindsight)
    assert f"hindsight: {count:,} crystals of wrote, {len(rows) - count:,} more have no energy" in said
    _, prompts = CrystalPolicy.load(str(tmp_path / "run/policy"))
    assert len(prompts) == len(train) and prompts.properties["e_above_hull"].max() < 0.02
    assert f"\nhindsight={tmp_path / 'wrote.csv'}\n" in (tmp_path / "run/policy/README.md").read_text()
    with pytest.raises(UserError, match="no crystal has a number in the column e_above_hull"):
        pretrain.run(load("pretrain", [*given, f"hindsight={table}", f"output={tmp_path / 'none'}"]))
