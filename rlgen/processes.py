"""Several processes that teach one policy: `accelerate launch --num_processes 2 -m rlgen.finetune …` on GPUs, and
`torchrun --nproc-per-node 2 -m rlgen.finetune …` anywhere.

All run the same program and hold the same state. Each draws a share of every batch's groups and computes a share of
every gradient; the first alone decodes, scores, writes and prints, and tells the others what it found.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F

from policies.sampler import Rollout
from rlgen.types import UserError

T = TypeVar("T")


def join(config: Any, cpu: bool) -> None:
    """Meet the other processes that accelerate has launched, if any. UserError for settings that need to be alone."""
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))])  # rewards take long
    if config.batch // config.algorithm.group_size < count():
        raise UserError(f"batch={config.batch} has fewer groups than there are processes ({count()})")
    if count() > 1 and config.algorithm.name == "trl":
        raise UserError("algorithm=trl learns in one process; the others in several")
    if count() > 1 and config.pipeline:
        raise UserError(f"pipeline={config.pipeline}: several processes learn strictly in turn; leave it at 0")


def leave() -> bool:
    """Wait for the others and part; whether this was the first, which goes on alone."""
    first = index() == 0
    if count() > 1:
        dist.barrier()
        dist.destroy_process_group()
    return first


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def index() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def wait() -> None:
    """Until all are here."""
    if count() > 1:
        dist.barrier()


def from_first(compute: Callable[[], T]) -> T:
    """What the first process computes, told to all."""
    box: list[Any] = [compute() if index() == 0 else None]
    if count() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gathered(rollout: Rollout, pad: int) -> Rollout:
    """The rows of all processes, by group."""
    if count() == 1:
        return rollout
    device = rollout.ids.device
    parts: list[Any] = [None] * count()
    dist.all_gather_object(parts, (rollout.ids.cpu(), rollout.logprobs.cpu(), rollout.group, rollout.conditions))
    length = max(ids.shape[1] for ids, *_ in parts)
    ids, logprobs = (torch.cat([F.pad(part[i], (0, length - part[0].shape[1]), value=value) for part in parts])
                     for i, value in ((0, pad), (1, 0.0)))
    group = torch.cat([part[2] for part in parts])
    order = torch.argsort(group, stable=True)
    ids, conditions = ids[order].to(device), [condition for part in parts for condition in part[3]]
    prompt = rollout.ids.shape[1] - rollout.mask.shape[1]
    return Rollout(ids, logprobs[order].to(device), ids[:, prompt:] != pad, group[order],
                   [conditions[i] for i in order.tolist()], rollout.temperature,
                   torch.zeros(len(ids), dtype=torch.bool, device=device))


@contextlib.contextmanager
def only_first_speaks(folder: Path) -> Iterator[Path]:
    """The run's folder for the first process; for the others one that is thrown away, and they print nothing."""
    if index() == 0:
        yield folder
        return
    with tempfile.TemporaryDirectory() as aside, Path(os.devnull).open("w") as nowhere, \
            contextlib.redirect_stdout(nowhere):
        yield Path(aside)
