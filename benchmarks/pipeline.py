"""What it gains to score one batch while the next is drawn: `python benchmarks/pipeline.py depths=0,1 steps=6`.

Steps per minute of `rlgen.finetune` with the shipped policy and the real stability reward in workers, for each depth
of the pipeline, and their ratio to the first; and the seconds of drawing, scoring and learning over the seconds that a
step took, which says how much of them overlapped whatever else the machine did. The first step, in which workers start
and load the potential, does not count. Settings of `rlgen.finetune` follow: `batch=32 reward.stability.mode=relax`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from rlgen import finetune
from rlgen.config import load

SETTINGS = {"reward": "stability", "batch": "32", "workers": "1", "evaluate": "0", "real_every": "0",
            "checkpoint_every": "1000", "collapse.action": "ignore"}
PARTS = ("time/sample", "time/reward", "time/wait", "time/update")


def measure(depth: str, steps: int, settings: dict[str, str], folder: Path) -> dict[str, float]:
    """Steps per minute after the first step, the mean seconds of a step's parts, and how much of them overlaps."""
    given = SETTINGS | settings | {"pipeline": depth, "steps": str(steps + 1), "output": str(folder / depth)}
    finetune.run(load("finetune", [f"{key}={value}" for key, value in given.items()]))
    lines = [json.loads(line) for line in (folder / depth / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = sum(line["time/step"] for line in lines[1:])
    found = {part: sum(line[part] for line in lines[1:]) / steps for part in PARTS}
    work = found["time/sample"] + found["time/reward"] + found["time/update"]
    return {"steps per minute": 60 * steps / seconds, "overlap": work * steps / seconds} | found


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    depths, steps = given.pop("depths", "0,1").split(","), int(given.pop("steps", "6"))
    with tempfile.TemporaryDirectory() as folder:
        found = {depth: measure(depth, steps, given, Path(folder)) for depth in depths}
    first = found[depths[0]]["steps per minute"]
    columns = ["pipeline", "steps per minute", "ratio", "work / time", *(f"{part[5:]} (s)" for part in PARTS)]
    print(f"\n| {' | '.join(columns)} |\n|{'---:|' * len(columns)}")
    for depth, row in found.items():
        speed = row["steps per minute"]
        values = [speed, speed / first, row["overlap"], *(row[part] for part in PARTS)]
        print(f"| {depth} | {' | '.join(f'{value:.2f}' for value in values)} |")


if __name__ == "__main__":
    main()
