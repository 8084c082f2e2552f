"""Novelty by an index against brute force, and against a reference of millions.

    python benchmarks/novelty.py samples=10000 brute=2000 big=5000000

Crystals of the shipped policy are looked up in MP-20 (all splits) by an index, and the first `brute` of them also by
StructureMatcher.fit on the whole crystals, against every crystal of MP-20 that its own comparison of compositions does
not refuse: no bucket, cell or cache of ours. Then all are looked up in a file of `big` crystals: MP-20, and copies of
it with elements exchanged within their block of the periodic table and with other volumes. Seconds are of `workers`
processes together, from their start, loading included, and in brackets those of CPU time of all of them; memory is the
highest of one process (MiB resident).
"""

from __future__ import annotations

import re
import struct
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from pymatgen.analysis.structure_matcher import ElementComparator, StructureMatcher
from pymatgen.core import Element, Structure

from rlgen.crystal_index import CrystalIndex, formula_key, pack
from rlgen.data import load
from rlgen.reference import Reference

#: Whether each crystal is known, the process's memory and its CPU time.
Verdicts = tuple[list[bool], int, float]


def drawn(n: int, batch: int = 256) -> list[Structure]:
    """n crystals of the shipped policy; what cannot be decoded is drawn again."""
    import torch  # not at the top: the processes that look up do without

    from policies.model import CrystalPolicy
    from policies.sampler import decode, sample

    policy, prompts = CrystalPolicy.load("shipped")
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    found: list[Structure] = []
    while len(found) < n:
        rollout = sample(policy, prompts.sample(batch, rng), generator)
        found += [crystal for crystal in decode(policy, rollout) if isinstance(crystal, Structure)]
    return found[:n]


def by_index(path: str, crystals: list[Structure]) -> Verdicts:
    reference = Reference.load(path)
    return [reference.contains(crystal) for crystal in crystals], memory(), time.process_time()


def by_brute_force(_: str, crystals: list[Structure]) -> Verdicts:
    matcher, comparator = StructureMatcher(), ElementComparator()
    known = everything()
    return [
        any(matcher.fit(crystal, other) for other in known[comparator.get_hash(crystal.composition)])
        for crystal in crystals
    ], memory(), time.process_time()


@lru_cache(maxsize=1)
def everything() -> dict:
    """MP-20 by what StructureMatcher compares of compositions before all else."""
    known, comparator = defaultdict(list), ElementComparator()
    for record in load("mp20"):
        structure = record.structure
        known[comparator.get_hash(structure.composition)].append(structure)
    return known


def memory() -> int:
    """The highest resident size of this process (MiB); getrusage's would be that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) >> 10


def timed(look_up: Callable[[str, list[Structure]], Verdicts], path: str, crystals: list[Structure], workers: int
          ) -> tuple[list[bool], float, str]:
    """Verdicts, CPU seconds, and what it took in words."""
    shares = [crystals[i::workers] for i in range(workers)]
    began = time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(look_up, [path] * workers, shares))
    seconds = time.perf_counter() - began
    verdicts = [False] * len(crystals)
    for i, (found, _, _) in enumerate(results):
        verdicts[i::workers] = found
    cpu = sum(used for _, _, used in results)
    took = f"{seconds:.1f} s [{cpu:.1f} s], {max(used for _, used, _ in results)} MiB, {sum(verdicts):,} known"
    return verdicts, cpu, took


def copies(n: int) -> Iterator[tuple[bytes, bytes]]:
    """n rows of an index: MP-20, then copies with other elements of the same blocks and volumes up to 20 % off."""
    rng = np.random.default_rng(0)
    records = list(load("mp20"))
    blocks = defaultdict(list)
    for z in range(1, 95):
        blocks[Element.from_Z(z).block].append(z)
    parts = []
    for record in records:
        elements, counts = np.unique(record.numbers, return_counts=True)
        crystal = pack(record)
        cut = 72 + len(record.numbers)
        reduced = counts // np.gcd.reduce(counts)
        parts.append((record.lattice, crystal[72:cut], crystal[cut:], list(zip(elements.tolist(), reduced.tolist(),
                                                                               strict=True))))
    made = 0
    while made < n:
        table = np.arange(256, dtype=np.uint8)
        if made:
            for block in blocks.values():
                table[block] = rng.permutation(block)
        exchange = table.tobytes()
        scales = 1 + (rng.uniform(-0.06, 0.06, len(parts)) if made else np.zeros(len(parts)))
        for (lattice, numbers, coordinates, formula), scale in zip(parts[: n - made], scales, strict=False):
            key = sorted((exchange[z], count) for z, count in formula)
            flat = [value for pair in key for value in pair]
            row = (lattice * scale).tobytes() + numbers.translate(exchange) + coordinates
            yield struct.pack(f"<{len(flat)}H", *flat), row
        made += len(parts)


def main() -> None:
    options = {"samples": "10000", "brute": "2000", "big": "5000000", "workers": "2"}
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    n, brute, big, workers = (int(options[name]) for name in ("samples", "brute", "big", "workers"))
    crystals = drawn(n)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "known.sqlite"
        began = time.perf_counter()
        index = CrystalIndex.build(load("mp20"), "mp20", path)
        print(f"index of {index.size:,} crystals: {time.perf_counter() - began:.1f} s, "
              f"{path.stat().st_size / 2**20:.0f} MiB on disk")
        print(f"index, {n:,} samples: {timed(by_index, str(path), crystals, workers)[2]}")
        if brute:
            few, quick, took = timed(by_index, str(path), crystals[:brute], workers)
            print(f"index, {brute:,} samples: {took}")
            slow, cpu, took = timed(by_brute_force, "", crystals[:brute], workers)
            differ = sum(a != b for a, b in zip(few, slow, strict=True))
            print(f"brute force, {brute:,} samples: {took}; {cpu / quick:.1f} times the index's CPU time; "
                  f"verdicts that differ: {differ}")
        if big:
            path = Path(folder) / "big.sqlite"
            began = time.perf_counter()
            index = CrystalIndex.build_from_rows(copies(big), "copies of mp20", path)
            print(f"index of {index.size:,} crystals: {time.perf_counter() - began:.0f} s, "
                  f"{path.stat().st_size / 2**30:.2f} GiB on disk, {memory()} MiB (those of the sampler included)")
            met = [len(index.of_formula(formula_key(crystal.atomic_numbers))) for crystal in crystals]
            print(f"index, {n:,} samples: {timed(by_index, str(path), crystals, workers)[2]}; crystals of a sample's "
                  f"formula: {np.mean(met):.1f} on average, {max(met)} at most")


if __name__ == "__main__":
    main()
