"""The four ways of writing a crystal, side by side: `python benchmarks/representations.py minutes=5 samples=512`.

Pretrains the `tiny` policy on MP-20 with each for the same time of training on one core (steps are counted off short
runs before), samples from each, judges the samples, and prints a table. Times are of the processor, so that whatever
else runs on the machine does not count. `output=` keeps the runs and the rows of the table: what is there is not made
again, so that an interrupted benchmark goes on with the same command. `names=atoms,orbits` restricts it.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

SETTINGS = ["policy=tiny", "data=mp20", "batch=128", "threads=1", "sample_every=0"]
SHARES = ("valid", "unique", "novel", "metastable", "sun")


def call(verb: str, *arguments: str) -> float:
    """Run a command; returns the seconds of processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-W", "ignore", "-m", f"rlgen.{verb}", *arguments], check=True,
                   stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def seconds_per_step(name: str, output: Path) -> float:
    """Of training, by the difference of two short runs; the first of three fills caches."""
    def spent(steps: int) -> float:
        return call("pretrain", f"representation={name}", *SETTINGS, "limit=1024", f"steps={steps}",
                    "evaluate_every=1000", f"output={output / str(steps)}")

    shutil.rmtree(output, ignore_errors=True)
    spent(1)
    return (spent(70) - spent(10)) / 60


def measured(name: str, minutes: float, samples: int, output: Path) -> dict[str, float | str]:
    run, kept = output / name, output / f"{name}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    if not (run / "policy" / "README.md").exists():
        steps = int(minutes * 60 / seconds_per_step(name, output / f"{name}_trial"))
        call("pretrain", f"representation={name}", *SETTINGS, f"steps={steps}", "warmup=100",
             f"evaluate_every={max(50, steps // 4)}", "patience=100", f"output={run}")
    few = call("sample", f"policy={run / 'policy'}", "n=1", f"output={output / f'{name}_sample'}")
    many = call("sample", f"policy={run / 'policy'}", f"n={samples}", f"output={output / f'{name}_samples'}")
    rate = (samples - 1) / (many - few)
    call("evaluate", f"input={output / f'{name}_samples'}", "data=mp20", "relax_steps=60", "workers=1", "real=null",
         f"output={output / f'{name}_judged'}")
    (judged,) = json.loads((output / f"{name}_judged" / "table.json").read_text()).values()
    card = dict(line.strip("| \n").split(" | ", 1) for line in (run / "policy" / "README.md").read_text().splitlines()
                if line.startswith("| ") and " | " in line.strip("| "))
    row: dict[str, float | str] = {
        "steps": card["steps"].split(";")[0],
        "nats per crystal": card["validation NLL (nats per crystal)"],
        "nats per atom": card["validation NLL (nats per atom)"],
        **{share: f"{judged['summary'][share]['value']:.1%}" for share in SHARES},
        "space groups": f"{judged['summary']['space_groups']['value']:.1f}",
        "written": f"{judged['summary']['e_above_hull_written']['value']:.2f}",
        "relaxed": f"{judged['summary']['e_above_hull']['value']:.3f}",
        "crystals/s": f"{rate:.0f}",
    }
    kept.write_text(json.dumps(row), encoding="utf-8")
    return row


def main(minutes: float = 5, samples: int = 512, output: str = "runs/representations",
         names: str = "atoms,orbits,text,invariant") -> None:
    rows = {name: measured(name, float(minutes), int(samples), Path(output)) for name in names.split(",")}
    columns = list(next(iter(rows.values())))
    print("| | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(str(row[c]) for c in columns) + " |")


if __name__ == "__main__":
    main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))
