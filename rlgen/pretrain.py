"""Supervised pretraining of a conditional policy on crystals: `python -m rlgen.pretrain data=mp20 policy=small`.

Maximum likelihood of each crystal's canonical sequence under its own conditions, some of which are dropped so that
any subset can be asked for later. AdamW, warm-up and cosine decay, gradient clipping, weights averaged over steps
(EMA), batches of similar length. Left out: packing (bucketing wastes under 5 % here) and augmentation (the written form
is canonical on purpose). All randomness of a step follows from (seed, step), so that a resumed run is the same run.
"""

from __future__ import annotations

import copy
import math
import os
import shutil
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from policies.model import CrystalPolicy
from policies.representations import make
from policies.representations.symmetry import SYMPRECS
from policies.sampler import decode, sample
from rlgen import card, checkpoint, data
from rlgen.config import architecture, device_of, main, plain, resumed
from rlgen.encoded import ENERGIES, Encoded, encode
from rlgen.labels import labels, scales
from rlgen.likelihood import nll
from rlgen.tracking import Run
from rlgen.types import CrystalError, UserError

#: Fresh samples behind the shares on a policy's card.
CARD_SAMPLES = 1024


def learning_rate(step: int, config: Any) -> float:
    """Linear warm-up, the peak, and over the last `decay` of all steps half a cosine down to nothing."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    left = (config.steps - step) / max(1.0, config.decay * config.steps)
    return config.learning_rate * 0.5 * (1 - math.cos(math.pi * min(1.0, left)))


def precision(setting: str, device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it faster than float32; both can be forced."""
    if setting not in ("auto", "bf16", "fp32"):
        raise UserError(f"precision={setting!r}; known: auto, bf16, fp32")
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if setting == "bf16" or (setting == "auto" and fast) else torch.float32


class Batch(NamedTuple):
    """What one step learns from. ids, labels: (B, T), see `Encoded.batch`. legal: (B, T - P + 1, V) the grammar's
    masks. seed: of the step's dropout."""

    ids: torch.Tensor
    labels: torch.Tensor
    legal: torch.Tensor
    seed: int


@dataclass(frozen=True)
class Batches(Dataset[Batch]):
    """The batch of (step, rows), which any process makes alike."""

    crystals: Encoded
    representation: Any
    seed: int
    condition_dropout: float
    property_dropout: float

    def __getitem__(self, at: tuple[int, np.ndarray]) -> Batch:
        step, rows = at
        rng = np.random.default_rng([self.seed, 1, step])
        seed = int(rng.integers(2**62))
        ids, labels = self.crystals.batch(rows, self.representation, rng, self.condition_dropout, self.property_dropout)
        return Batch(ids, labels, self.representation.masks(ids), seed)


def batches(crystals: Encoded, representation: Any, config: Any, device: torch.device, start: int = 0
            ) -> Iterable[Batch]:
    """Without end, from the given step on, made ahead by other processes where the device would wait for them."""
    workers = config.workers
    if workers is None:
        workers = 0 if device.type == "cpu" else max(1, (os.cpu_count() or 1) - 1)
    found = Batches(crystals, representation, config.seed, config.condition_dropout, config.property_dropout)
    several: dict[str, Any] = {"multiprocessing_context": "spawn", "prefetch_factor": 4} if workers else {}
    steps: Any = enumerate(crystals.epochs(config.batch, config.seed, start), start)
    return DataLoader(found, batch_size=None, sampler=steps, num_workers=workers, pin_memory=device.type == "cuda",
                      **several)


class Trainer:
    """The policy, its running average, the optimiser and the step they are at: all that a checkpoint keeps."""

    def __init__(self, policy: CrystalPolicy, config: Any, device: torch.device):
        self.policy: CrystalPolicy = policy.to(device)  # type: ignore[arg-type]
        self.config, self.device = config, device
        self.average = copy.deepcopy(self.policy).eval().requires_grad_(False)
        decayed = [p for p in policy.parameters() if p.ndim > 1]
        others = [p for p in policy.parameters() if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
        self.step = 0
        self.best = math.inf
        self.best_step = 0
        self.seconds = 0.0  # spent training, over all resumes
        self.dtype = precision(config.precision, device)

    def update(self, batch: Batch) -> dict[str, float]:
        """One optimiser step on some crystals; returns scalars."""
        config = self.config
        torch.manual_seed(batch.seed)
        ids, labels, legal = (t.to(self.device, non_blocking=True) for t in (batch.ids, batch.labels, batch.legal))
        rate = learning_rate(self.step, config)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.policy.train()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.policy(ids, labels=labels, legal=legal).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), config.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        decay = min(config.ema, self.step / (self.step + 10))
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.policy.parameters(), strict=True)
            averages, now = zip(*((a, p) for a, p in pairs if p.requires_grad), strict=True)
            torch._foreach_lerp_(averages, now, 1 - decay)
        tokens = int((batch.labels != -100).sum())
        return {"pretrain/loss": float(loss.detach()), "pretrain/learning_rate": rate,
                "pretrain/grad_norm": float(norm), "pretrain/tokens": tokens}

    def save(self, folder: Path) -> None:
        self.policy.save_pretrained(folder / "policy")
        self.average.save_pretrained(folder / "average")
        checkpoint.save_state(folder / "state", {"optimiser": self.optimiser.state_dict(), "step": self.step,
                                                 "best": self.best, "best_step": self.best_step,
                                                 "seconds": self.seconds})

    def load(self, folder: Path) -> None:
        for name, policy in (("policy", self.policy), ("average", self.average)):
            policy.load_state_dict(type(policy).from_pretrained(folder / name).state_dict())
        state = checkpoint.load_state(folder / "state")
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]
        self.seconds = state["seconds"]


def sample_metrics(policy: CrystalPolicy, train: Encoded, count: int, reference: Any, seed: int) -> dict[str, float]:
    """Shares of valid, unique and novel crystals among `count` fresh samples, all of them in the denominator."""
    from rewards.validity import Validity
    from rlgen.reference import duplicate_groups

    conditions = train.prompts.sample(count, np.random.default_rng([seed, 2]))
    rollout = sample(policy, conditions, torch.Generator(policy.device).manual_seed(seed))
    check = Validity().check
    valid = [c for c in decode(policy, rollout) if not isinstance(c, CrystalError) and not check(c)]
    return {"sample/valid": len(valid) / count, "sample/unique": len(set(duplicate_groups(valid).tolist())) / count,
            "sample/novel": sum(not reference.contains(c) for c in valid) / count}


def build(config: Any, representation: Any, start: CrystalPolicy | None = None) -> CrystalPolicy:
    """What learns: the policy to go on from, a language model, or a new policy of the configured size."""
    torch.manual_seed(config.seed)
    if start is not None:
        return start.asked_for(representation)
    settings = {k: v for k, v in architecture(config.policy).items() if not k.startswith("representation")}
    if config.policy.path is None:
        return CrystalPolicy.create(representation, **settings)
    from policies.hf import HFPolicy

    return HFPolicy.create(representation, **settings)


def names_of(config: Any, start: CrystalPolicy | None) -> list[str]:
    """The properties that the policy is to be asked for; where none is named, those of the policy to go on from.

    UserError: nothing says what `hindsight` is worth.
    """
    names = [name.strip() for name in config.conditions.split(",") if name.strip()]
    if not names and start is not None:
        names = list(start.representation.conditions)
    if config.hindsight is not None and not set(ENERGIES) & set(names):
        raise UserError(f"hindsight={config.hindsight}: what a policy wrote is learnt from by how stable it is: add "
                        f"{' or '.join(ENERGIES)} to conditions=")
    return names


def judged(path: str) -> list[data.Record]:
    """Crystals that a policy wrote, of which an energy above the hull is known. UserError: there are none."""
    dataset = data.load(path)
    records = [record for split in dataset.splits.values() for record in split]
    kept = [record for record in records if np.isfinite(record.properties.get("e_above_hull", np.nan))]
    print(f"hindsight: {len(kept):,} crystals of {dataset.name}, {len(records) - len(kept):,} more have no energy")
    if not kept:
        raise UserError(f"hindsight={path}: no crystal has a number in the column e_above_hull: annotate them first, "
                        f"python -m rlgen.annotate data={path} output=…")
    return kept


def written(config: Any, dataset: data.Dataset, start: CrystalPolicy | None = None) -> tuple[Any, Encoded, Encoded]:
    """The representation, with the scales of what it is to be asked for, and the splits to learn from and validate on.
    """
    names = names_of(config, start)
    parameters = plain(config.policy.representation_parameters)
    given = parameters.pop("conditions", {})
    if unused := sorted(set(given) - set(names)):
        raise UserError(f"policy.representation_parameters.conditions: {', '.join(unused)} is not in conditions=")
    kept: dict[str, Any] = {}  # scales of what can be asked already
    if start is not None:
        parameters = start.representation.written | parameters
        kept = {k: v for k, v in start.representation.parameters.get("conditions", {}).items() if k not in given}
    train, val = dataset.splits["train"], dataset.splits["val"]
    wrote = judged(config.hindsight) if config.hindsight is not None else []
    # Together, so that a property has one source in all; what was only taken over may be unknown.
    known = labels([*train, *wrote, *val], names, optional=not config.conditions)
    first, last = len(train), len(train) + len(wrote)
    of_train, of_wrote, of_val, fit_to = ({name: values[part] for name, values in known.items()} for part in (
        slice(first), slice(first, last), slice(last, None), slice(last)))
    if names:
        fitted = scales([name for name in names if name not in kept], given, fit_to)
        parameters["conditions"] = {name: kept.get(name) or fitted[name] for name in names}
    try:
        representation = make(config.policy.representation, **parameters)
    except TypeError as error:  # a parameter that it does not have
        raise UserError(f"policy.representation_parameters: {error}") from error
    learnt, held_out = encode(train, representation, of_train), encode(val, representation, of_val)
    if wrote:
        learnt = replace(learnt, hindsight=encode(wrote, representation, of_wrote))
    for name, values in learnt.prompts.properties.items():
        print(f"{name}: known of {int(np.isfinite(values).sum()):,} of {len(learnt):,} crystals, told as "
              f"{parameters['conditions'][name]}")
    return representation, learnt, held_out


def run(config: Any) -> None:
    going_on = config.resume is not None
    config, last = resumed(config)
    output = Path(config.output)
    device = device_of(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    start = None
    if config.policy.start is not None:  # a mistake is found before any data are read
        start, _ = CrystalPolicy.load(config.policy.start, config.policy.representation)
    names_of(config, start)
    dataset = data.load(config.data, limit=config.limit)
    print(dataset.summary())
    representation, train, val = written(config, dataset, start)
    for name, split in (("train", train), ("val", val), ("hindsight", train.hindsight)):
        if split is None:
            continue
        if split.failures:
            print(f"{name}: left out because they cannot be written: {dict(split.failures)}")
        if split.symprecs:
            print(f"{name}: symmetrised at another tolerance than {SYMPRECS[0]} Å: " + ", ".join(
                f"{n} at {symprec} Å" for symprec, n in split.symprecs.items()))
    trainer = Trainer(build(config, representation, start), config, device)
    if last is not None:
        trainer.load(last)
    reference = None
    if config.sample_every:
        from rlgen.reference import Reference

        reference = Reference.load("shipped:train" if config.data == "mp20" else config.data)

    stop = [False]
    signal.signal(signal.SIGINT, lambda *_: stop.__setitem__(0, True))
    started, tokens, ended = time.monotonic(), 0, ""
    size = sum(p.numel() for p in trainer.policy.parameters())
    count = len(train) + (len(train.hindsight) if train.hindsight else 0)
    print(f"{size:,} parameters, {str(trainer.dtype).removeprefix('torch.')}, {count} crystals, {config.steps} "
          f"steps of {config.batch} = {config.steps * config.batch / count:.1f} epochs; run: {output}")
    columns = (BarColumn(bar_width=10), TextColumn("{task.completed}/{task.total} {task.description}"),
               TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Run(output, config, resume=trainer.step if going_on else None) as log, Progress(*columns) as progress:
        task = progress.add_task("", total=config.steps, completed=trainer.step)
        learnt_from = iter(batches(train, representation, config, device, trainer.step))
        while trainer.step < config.steps and not ended:
            began = time.monotonic()
            scalars = trainer.update(next(learnt_from))
            trainer.seconds += time.monotonic() - began
            step, tokens = trainer.step, tokens + int(scalars["pretrain/tokens"])
            scalars["time/tokens_per_second"] = tokens / (time.monotonic() - started)
            if step % config.evaluate_every == 0 or step == config.steps:
                per_crystal, per_atom = nll(trainer.average, val, limit=2048)
                scalars |= {"pretrain/nll": per_crystal, "pretrain/nll_per_atom": per_atom}
                if per_crystal < trainer.best:
                    trainer.best, trainer.best_step = per_crystal, step
                    _keep_best(trainer, train, output)
                elif step - trainer.best_step >= config.patience * config.evaluate_every:
                    ended = f"validation NLL has not fallen for {config.patience} evaluations"
            if reference is not None and step % config.sample_every == 0:
                scalars |= sample_metrics(trainer.average, train, config.samples, reference, config.seed + step)
            log.log_scalars(step, scalars)
            if stop[0]:
                ended = "interrupted"
            if step % config.checkpoint_every == 0 or step == config.steps or ended:
                checkpoint.save(output, step, trainer.save)
            shown = f"loss {scalars['pretrain/loss']:.2f} validation NLL {trainer.best:.2f}"
            progress.update(task, completed=step, description=shown)
    _finish(config, trainer, train, val, device, reference, ended)


def _keep_best(trainer: Trainer, train: Encoded, output: Path) -> None:
    """Replace `policy/` by the running average of now; a kill leaves the one or the other."""
    aside, final = output / ".policy.tmp", output / "policy"
    shutil.rmtree(aside, ignore_errors=True)
    trainer.average.save_pretrained(aside)
    train.prompts.save(aside)
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)


def _finish(config: Any, trainer: Trainer, train: Encoded, val: Encoded, device: torch.device, reference: Any,
            ended: str) -> None:
    """Measure the best policy on all of the validation split, write its card, and say where everything is."""
    output = Path(config.output)
    if ended == "interrupted":
        print(f"interrupted at step {trainer.step}: go on with python -m rlgen.pretrain resume={output}")
        return
    best, _ = CrystalPolicy.load(str(output / "policy"))
    best.to(device)  # type: ignore[arg-type]
    per_crystal, per_atom = nll(best, val)
    found = {"validation NLL (nats per crystal)": f"{per_crystal:.2f}",
             "validation NLL (nats per atom)": f"{per_atom:.3f}"}
    shares: dict[str, float] = {}
    if reference is not None:
        measured = sample_metrics(best, train, CARD_SAMPLES, reference, config.seed)
        shares = {name.split("/")[1]: value for name, value in measured.items()}
        found |= {f"{name}, of {CARD_SAMPLES} samples": f"{value:.1%}" for name, value in shares.items()}
    write_card(output / "policy", config, trainer, len(train), len(val), found, shares)
    print(f"{ended or 'all steps done'}: validation NLL {per_crystal:.2f} nats per crystal, {per_atom:.3f} per atom "
          f"(all {len(val)} crystals, step {trainer.best_step})\n"
          f"policy:      {output / 'policy'}\nTensorBoard: tensorboard --logdir {output}\n"
          f"next:        python -m rlgen.finetune policy={output / 'policy'}")


def flat(key: str, value: Any) -> dict[str, Any]:
    """Settings as a user writes them, key by key: a.b.c=1."""
    if not isinstance(value, dict):
        return {key: value}
    return {inner: v for name, below in value.items() for inner, v in flat(f"{key}.{name}", below).items()}


def write_card(folder: Path, config: Any, trainer: Trainer, crystals: int, held_out: int, found: dict[str, str],
               shares: dict[str, float]) -> None:
    """README.md of a policy: how it was made, and what was measured of it; shares are its figures for the Hub."""
    sizes = architecture(config.policy)
    recipe: dict[str, Any] = {"hindsight": config.hindsight} if config.hindsight is not None else {}
    recipe |= {k: config[k] for k in ("steps", "batch", "learning_rate", "warmup", "decay", "weight_decay", "ema",
                                     "max_grad_norm", "condition_dropout", "seed")}
    if config.conditions:
        recipe |= {"conditions": config.conditions, "property_dropout": config.property_dropout}
    recipe |= {"policy": "trained"} if "start" in sizes else {}
    recipe |= flat("policy", sizes)
    parameters = sum(p.numel() for p in trainer.policy.parameters())
    machine = f"{trainer.device.type} in {str(trainer.dtype)[6:]}, torch {torch.__version__}"
    text = f"""# A policy pretrained with rlgen

| | |
|---|---|
| data | {config.data}: {crystals:,} crystals to learn from, {held_out:,} to validate on |
| written as | {config.policy.representation}, version {trainer.policy.config.representation_version} |
| parameters | {parameters:,} |
| seed | {config.seed} |
| steps | {trainer.step}; the weights are the running average at step {trainer.best_step} |
| time | {trainer.seconds / 60:.0f} minutes of training on {machine} |
"""
    text += "".join(f"| {name} | {value} |\n" for name, value in found.items())
    text += "\nRecipe, for `python -m rlgen.pretrain`:\n\n```text\n"
    text += "\n".join(f"{k}={v}" for k, v in {"data": config.data, **recipe}.items()) + "\n```\n"
    card.write(folder, text, str(config.data), shares)


if __name__ == "__main__":
    main("pretrain", run)
