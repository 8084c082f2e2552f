"""Where the figures of a page come from: what judged, with which settings and versions, and of which run."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlgen.evaluation import Evaluation

_PACKAGES = ("rlgen", "torch", "pymatgen", "matgl", "chgnet", "moyopy", "smact", "numpy", "ase")


def provenance(evaluations: Mapping[str, Evaluation], settings: str, run: Path | None) -> str:
    """A list of what is known, and the settings of the command and of the run in full."""
    last = list(evaluations.values())[-1].notes
    facts = {
        "samples": "; ".join(f"{name}: {one.notes['samples']:,}" for name, one in evaluations.items()),
        "potential": last["scale"],
        "hull": last["hull"],
        "relaxation": f"fmax {last['fmax']:g} eV/Å, at most {last['steps']} steps" if last["relaxed"] else "none",
        "novelty": f"not found by {last['novelty']}",
        "uniqueness": last["unique"],
        "real crystals": f"{last['real_size']:,} of {last['real']}" if "real" in last else "none",
        "seed": str(last["seed"]),
        "definitions": ", ".join(f"{name}={value}" for name, value in last["definitions"].items()),
        "versions": ", ".join(f"{name} {number}" for name in _PACKAGES if (number := _version(name))),
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    found = f"<dl>{lines}</dl>"
    if settings:
        found += _folded("Settings of the evaluation", settings)
    if run is not None and (run / "config.yaml").exists():
        found += _folded(f"Settings of the run {run.name}", (run / "config.yaml").read_text(encoding="utf-8"))
    return found


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text.strip())}</pre></details>"


def _version(package: str) -> str:
    """The version of an installed package, "" if it is not installed as one."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
