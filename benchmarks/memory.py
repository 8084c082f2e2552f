"""What the memory of prototypes leaves of rewards: `python benchmarks/memory.py`, half a minute, no policy and no data.

Of 90 batches of 128 samples the last 2,000 are shown. "as the data": labels of MP-20's training set drawn at random,
which is what a policy that answers the shipped policy's prompts as the data do would write; the ten commonest
prototypes and the others. "the trap": the commonest prototype and nothing else, with ever other elements.
"""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pyarrow.parquet as pq

from policies.model import SHIPPED
from policies.prompts import PromptTable
from rlgen import config, reference
from rlgen.experience import Collector
from rlgen.protostructure import read_label

BATCH, LAST = 128, 2000


def left(settings: list[str], prompts: PromptTable, labels: list[str]) -> np.ndarray:
    """(N,) share of its reward that each sample keeps."""
    loaded = config.load("finetune", ["memory.crystal.shape=none", *settings])
    collector = Collector(prompts, loaded)
    collector.enter(None, loaded)  # type: ignore[arg-type]  # nothing is scored
    batches = [labels[start : start + BATCH] for start in range(0, len(labels), BATCH)]
    return np.concatenate([collector.memory.discount(batch, np.ones(len(batch))) for batch in batches])


def main(batches: int = 90) -> None:
    train = pq.read_table(reference._SHIPPED, filters=[("split", "==", "train")], columns=["label"])
    prototype = {label: read.prototype for label in train["label"].to_pylist() if (read := read_label(label))}
    rng = np.random.default_rng(0)
    known = list(prototype)
    drawn = [known[i] for i in rng.integers(len(known), size=int(batches) * BATCH)]
    common = [name for name, _ in Counter(prototype[label] for label in drawn).most_common(10)]
    alike = [label for label in known if prototype[label] == common[0]]
    trap = [alike[i] for i in rng.integers(len(alike), size=len(drawn))]
    is_common = np.array([prototype[label] in common for label in drawn])[-LAST:]
    prompts = PromptTable.load(SHIPPED)
    print("| shape | quota | as the data: ten commonest | as the data: others | the trap |\n|---|---:|---:|---:|---:|")
    for shape in ("inverse", "step", "linear", "sigmoid"):
        for quota in (0, 1, 2):
            settings = [f"memory.prototype.shape={shape}", f"memory.prototype.quota={quota}"]
            kept, trapped = (left(settings, prompts, labels)[-LAST:] for labels in (drawn, trap))
            print(f"| {shape} | {quota} | {kept[is_common].mean():.1%} | {kept[~is_common].mean():.1%} | "
                  f"{trapped.mean():.1%} |", flush=True)


if __name__ == "__main__":
    main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))
