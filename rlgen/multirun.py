"""Sweeps: `python -m rlgen.finetune --multirun seed=0,1,2 algorithm=grpo,ppo` runs every combination in turn.

Each run is a process of its own, so that one that fails, or is killed for its memory, takes no other along.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rlgen.config import load
from rlgen.types import UserError

FLAG = "--multirun"
#: What the table at the end compares, as far as runs have it: means over the last steps that have it.
COLUMNS = ("reward/learned", "sample/valid", "sample/unique", "sample/sun", "diversity/space_groups",
           "diversity/prototypes", "policy/kl", "policy/nll_real", "collapse/alarms", "pretrain/nll")
LAST = 10


def split(value: str) -> list[str]:
    """The alternatives of `a,b,c`. Commas inside brackets or quotes separate nothing; quotes around one are dropped."""
    parts, depth, quote = [""], 0, ""
    for character in value:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        if character == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part[1:-1] if len(part) > 1 and part[0] == part[-1] and part[0] in "'\"" else part for part in parts]


def combinations(arguments: Sequence[str]) -> list[dict[str, str]]:
    """Every combination of the alternatives, as settings by key; keys with one value are in all of them."""
    pairs = [argument.partition("=") for argument in arguments]
    for key, sign, _ in pairs:
        if not sign:
            raise UserError(f"{key!r} is not key=value")
    alternatives = {key: split(value) for key, _, value in pairs}
    if "resume" in alternatives:
        raise UserError(f"{FLAG} starts runs; resume= goes on with one")
    if len(alternatives.get("output", [])) > 1:
        raise UserError("output= cannot be swept: each run gets a folder of its own below it")
    return [dict(zip(alternatives, values, strict=True)) for values in itertools.product(*alternatives.values())]


def name_of(settings: dict[str, str], swept: Sequence[str]) -> str:
    """A folder's name from what distinguishes a run: `seed=0,algorithm=grpo`."""
    named = ",".join(f"{key}={settings[key]}" for key in swept)
    return re.sub(r"[^\w=,.+*-]+", "_", named)[:120] or "run"


def run(verb: str, arguments: Sequence[str], output: str) -> int:
    """Run every combination below the folder `output`, show and write the table; 1 if any failed, else 0."""
    settings = combinations([argument for argument in arguments if argument != FLAG])
    swept = [key for key in settings[0] if len({one[key] for one in settings}) > 1]
    folder = Path(settings[0].get("output", output))
    names = [name_of(one, swept) for one in settings]
    if len(set(names)) < len(names):
        raise UserError(f"{FLAG}: two runs would share a folder: {', '.join(names)}")
    runs = [[f"{key}={value}" for key, value in (one | {"output": str(folder / name)}).items()]
            for one, name in zip(settings, names, strict=True)]
    for given in runs:
        load(verb, given)  # a mistake is told before hours have passed
    codes = []
    for i, (given, name) in enumerate(zip(runs, names, strict=True), 1):
        print(f"\n[{i}/{len(names)}] {name}", flush=True)
        codes.append(subprocess.run([sys.executable, "-m", f"rlgen.{verb}", *given]).returncode)
    text = table(folder, names, codes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nruns: {folder}\nTensorBoard: tensorboard --logdir {folder}")
    return int(any(codes))


def table(folder: Path, names: Sequence[str], codes: Sequence[int]) -> str:
    """Markdown: each run's exit code, its steps, and the means of `COLUMNS` over its last steps."""
    lines = [_lines(folder / name / "metrics.jsonl") for name in names]
    columns = [column for column in COLUMNS if any(column in line for run in lines for line in run)]
    rows = [["run", "ended", "steps", *columns], ["---", "---", *["---:"] * (len(columns) + 1)]]
    for name, code, run_lines in zip(names, codes, lines, strict=True):
        rows.append([name, "well" if code == 0 else f"failed ({code})",
                     str(run_lines[-1]["step"]) if run_lines else "0", *(_mean(run_lines, c) for c in columns)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _mean(lines: Sequence[dict], column: str) -> str:
    values = [line[column] for line in lines if line.get(column) is not None][-LAST:]
    return f"{sum(values) / len(values):.4g}" if values else ""
