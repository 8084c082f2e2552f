"""Crystals as token sequences with what they answer, ready for pretraining."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from policies.prompts import PromptTable
from policies.representations import make
from policies.representations.symmetry import SYMPRECS
from rlgen.conditions import ALWAYS, Category, crystal_system
from rlgen.counters import drain
from rlgen.data import Record, cache_dir
from rlgen.data.cache import write_aside
from rlgen.data.progress import bar
from rlgen.properties import symmetry
from rlgen.types import CrystalError, UserError

#: Raise when what is cached for a crystal changes.
VERSION = "4"
#: Properties that tell what a policy wrote from what there is.
ENERGIES = ("e_above_hull", "stability")
KINDS = ("parse", "chemistry", "geometry", "symmetry")


@dataclass(frozen=True)
class Encoded:
    """One split. ids: the tokens after the prompt of each of M crystals. failures: how many could not be written, by
    kind. symprecs: how many were symmetrised at another tolerance (Å) than the first. hindsight: what a policy wrote,
    learnt from besides: rows from M on. It is no part of the data's distribution, hence never without its energy."""

    ids: list[np.ndarray]
    prompts: PromptTable
    failures: Counter[str]
    symprecs: Counter[float]
    hindsight: Encoded | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def atoms(self) -> int:
        return int(self.prompts.n_atoms.sum())

    def batch(self, rows: Sequence[int] | np.ndarray, representation: Any, rng: np.random.Generator, dropout: float,
              property_dropout: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B, T) with prompts, right-padded, and labels (B, T): -100 on the prompt and the padding.

        Space group, number of atoms and element are each left out of a crystal's prompt with probability `dropout`.
        With `property_dropout` no property is told, and with the same probability each is left out where some are.
        The others come in random order, which shows where prompts are sentences.
        """
        sequences = []
        for i in rows:
            part, at = (self.hindsight, int(i) - len(self)) if self.hindsight and i >= len(self) else (self, int(i))
            condition = part.prompts.row(at, rng)
            apart = 1.0 if rng.random() < property_dropout else property_dropout
            kept = [k for k in condition if rng.random() >= (dropout if k in ALWAYS else apart)]
            if part is not self and not any(name in kept for name in ENERGIES):
                kept.append(str(rng.choice([name for name in ENERGIES if name in condition])))
            asked = {kept[k]: condition[kept[k]] for k in rng.permutation(len(kept))}
            ids = representation.augment(part.ids[at], rng)
            sequences.append(torch.from_numpy(np.concatenate([representation.prompt(asked), ids])).long())
        ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=representation.pad)
        labels = ids.masked_fill(ids == representation.pad, -100)
        labels[:, : representation.prompt_length] = -100
        return ids, labels

    def batches(self, size: int, epoch: int, seed: int) -> list[np.ndarray]:
        """The rows of each batch of an epoch: crystals of similar length share one, in random order."""
        rng = np.random.default_rng([seed, epoch])
        lengths = np.array([len(i) for i in self.ids + (self.hindsight.ids if self.hindsight else [])])
        found: list[np.ndarray] = []
        order = rng.permutation(len(lengths))
        for start in range(0, len(order), 50 * size):
            pool = order[start : start + 50 * size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            found += [pool[i : i + size] for i in range(0, len(pool), size)]
        return [found[i] for i in rng.permutation(len(found))]

    def epochs(self, size: int, seed: int, start: int = 0) -> Iterator[np.ndarray]:
        """Batches without end, from the given step on."""
        per_epoch = len(self.batches(size, 0, seed))
        while True:
            epoch, at = divmod(start, per_epoch)
            for rows in self.batches(size, epoch, seed)[at:]:
                yield rows
                start += 1


def encode(records: Sequence[Record], representation: Any, labels: Mapping[str, np.ndarray] | None = None, *,
           processes: int | None = None) -> Encoded:
    """Write crystals as tokens, on all cores, cached under a key of content, representation and version.

    labels: (M,) what is known of them of the properties that prompts tell, by name; nothing is of one that is not
    given. What cannot be written is left out and counted by kind; UserError if nothing is left.
    """
    if not len(records):
        raise UserError("there are no crystals to write; a data set needs at least three, one of them to validate with")
    told, representation = representation.conditions, make(representation.name, **representation.written)
    path = cache_dir() / "encoded" / f"{_key(records, representation)}.safetensors"
    if not path.exists():
        arrays = _encode_all(records, representation, processes or os.cpu_count() or 1)
        write_aside(path, lambda aside: save_file(arrays, aside))
    arrays = load_file(path)
    if not len(arrays["lengths"]):
        counted = dict(zip(KINDS, arrays["failures"].tolist(), strict=True))
        raise UserError(f"none of {len(records)} crystals can be written as {representation.name}: {counted}")
    split = np.cumsum(arrays["lengths"])[:-1]
    atoms = np.cumsum(arrays["n_atoms"])[:-1]
    properties = {name: (labels or {}).get(name, np.full(len(records), np.nan))[arrays["kept"]] for name in told}
    properties |= {name: scale.places(properties[name]) for name, scale in told.items() if isinstance(scale, Category)}
    if "crystal_system" in told:
        properties["crystal_system"] = np.array([crystal_system(group) for group in arrays["space_group"].tolist()])
    return Encoded(np.split(arrays["ids"], split),
                   PromptTable.of(arrays["space_group"], np.split(arrays["numbers"], atoms), properties),
                   Counter({k: int(n) for k, n in zip(KINDS, arrays["failures"], strict=True) if n}),
                   Counter({k: int(n) for k, n in zip(SYMPRECS, arrays["symprecs"], strict=True) if n}))


def _key(records: Sequence[Record], representation: Any) -> str:
    digest = hashlib.sha256(f"{VERSION} {representation.name} {representation.version} "
                            f"{sorted(representation.parameters.items())}".encode())
    for record in records:
        for array in (record.lattice, record.numbers, record.frac_coords):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _encode_all(records: Sequence[Record], representation: Any, processes: int) -> dict[str, np.ndarray]:
    chunks = [(representation.name, representation.parameters, records[i : i + 256])
              for i in range(0, len(records), 256)]
    rows, failures, symprecs = [], Counter[str](), Counter[str]()
    with bar(f"writing crystals as {representation.name}", len(records)) as progress:
        # One chunk is not worth starting processes for. "spawn": torch's threads do not survive a fork.
        if processes == 1 or len(chunks) == 1:
            results: Any = map(_encode_chunk, chunks)
            pool = None
        else:
            pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
            results = pool.map(_encode_chunk, chunks)
        for at, (encoded, failed, counted) in enumerate(results):
            rows += [(256 * at + i, *row) for i, *row in encoded]
            failures.update(failed)
            symprecs.update(counted)
            progress.advance(len(encoded) + sum(failed.values()))
        if pool is not None:
            pool.shutdown()
    kept, ids, groups, numbers = zip(*rows, strict=True) if rows else ((), (), (), ())
    joined = [np.concatenate([np.zeros(0, np.int32), *a]) for a in (ids, numbers)]
    return {"ids": joined[0].astype(np.int32), "lengths": np.array([len(i) for i in ids], np.int64),
            "kept": np.array(kept, np.int64),
            "space_group": np.array(groups, np.int16), "numbers": joined[1].astype(np.uint8),
            "n_atoms": np.array([len(n) for n in numbers], np.int64),
            "failures": np.array([failures[k] for k in KINDS], np.int64),
            "symprecs": np.array([symprecs[f"symprec/{k}"] for k in SYMPRECS], np.int64)}


def _encode_chunk(task: tuple[str, dict[str, Any], Sequence[Record]]
                  ) -> tuple[list[tuple[int, np.ndarray, int, np.ndarray]], Counter[str], Counter[str]]:
    """(place, ids, space group, atomic numbers) of each crystal that can be written, the failures by kind, and how many
    were symmetrised at another tolerance."""
    name, parameters, records = task
    drain("symprec/")  # what others symmetrised in this process is not of this chunk
    representation = make(name, **parameters)
    done, failed = [], Counter[str]()
    for i, record in enumerate(records):
        try:
            ids = representation.encode(record.structure)
            written = representation.decode(ids)
            group = representation.written_group(ids) or symmetry(written)[0]
            done.append((i, np.array(ids, np.int32), group, np.array(written.atomic_numbers, np.uint8)))
        except CrystalError as error:
            failed[error.kind] += 1
    legal = allowed(representation, [ids for _, ids, _, _ in done])
    failed["geometry"] += len(done) - sum(legal)
    return [row for row, fine in zip(done, legal, strict=True) if fine], failed, drain("symprec/")


def allowed(representation: Any, sequences: list[np.ndarray]) -> list[bool]:
    """Which sequences, without their prompts, the grammar allows where nothing is asked.

    No policy could learn another, such as one with atoms too close.
    """
    prompt = representation.prompt({})
    found: list[bool] = []
    for start in range(0, len(sequences), 64):
        rows = [torch.tensor([*prompt, *s.tolist()]) for s in sequences[start : start + 64]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=representation.pad)
        answer = ids[:, len(prompt) :]
        legal = representation.masks(ids[:, :-1]).gather(2, answer[..., None])[..., 0]
        found += (legal | (answer == representation.pad)).all(1).tolist()
    return found
