"""Imports point one way, and `import rlgen` is instant."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENTRY_POINTS = {f"rlgen.{verb}" for verb in ("pretrain", "finetune", "sample", "evaluate", "relax", "annotate",
                                          "explore", "predict", "hull.__main__")} | {"rewards.check"}
#: A module may import those of its own level and below. The longest prefix counts; other modules of rlgen are parts
#: that entry points share.
LEVELS = {
    "rlgen.types": 0,
    "rlgen.counters": 0,
    "rlgen.spacegroup": 0,
    "rlgen.data": 1,
    "rlgen.energies": 1,
    "rlgen.hull": 1,
    "rlgen.reference": 1,
    "rlgen.crystal_index": 1,
    "rlgen.protostructure": 1,
    "rlgen.properties": 1,
    "rlgen.conditions": 1,
    "rlgen.predictors": 1,
    "policies.representations": 1,
    "policies": 2,
    "rewards": 2,
    "rlgen": 3,
    "rlgen.hull.build": 3,
    **dict.fromkeys(ENTRY_POINTS | {"rlgen.build_reference"}, 4),
}
OURS = ("rlgen", "policies", "rewards")


def sources() -> dict[str, Path]:
    """Module name -> file, for all of our packages."""
    found = {}
    for package in OURS:
        for file in (ROOT / package).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


SOURCES = sources()


def level(module: str) -> int:
    while module not in LEVELS:
        module = module.rpartition(".")[0]
    return LEVELS[module]


def imported(module: str) -> set[str]:
    """Our modules that a module imports, anywhere in it: also in functions, and for type checking only."""
    found = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if SOURCES[module].name == "__init__.py" else module.rpartition(".")[0]
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            # `from rlgen import samples` is an import of rlgen.samples.
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= (names & SOURCES.keys()) or {base}
    return {name for name in found if name.split(".")[0] in OURS and name != module}


def test_the_walk_sees_all_kinds_of_imports():
    assert len(SOURCES) > 40
    assert "rlgen.samples" in imported("rlgen.tracking")  # from rlgen import samples
    assert "rlgen.algorithms.trl" in imported("rlgen.finetune")  # in a function
    assert "rlgen.energies" in imported("rewards.stability")  # for type checking
    assert {level(m) for m in SOURCES} == {0, 1, 2, 3, 4}
    assert level("policies.representations.atoms") == 1 and level("policies.model") == 2 and level("rlgen.config") == 3


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_one_way(module):
    # The package `rlgen` itself holds nothing: importing it is importing none of its modules.
    against = {name for name in imported(module) - {"rlgen"} if level(name) > level(module)}
    assert not against, f"{module} imports {', '.join(sorted(against))} from above it"


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_imports_an_entry_point(module):
    assert not imported(module) & ENTRY_POINTS


@pytest.mark.parametrize(("one", "other"), [("policies", "rewards"), ("rewards", "policies")])
def test_policies_and_rewards_do_not_know_each_other(one, other):
    for module in SOURCES:
        if module.split(".")[0] == one:
            assert not [name for name in imported(module) if name.split(".")[0] == other], module


@pytest.mark.parametrize("module", ["rlgen.types", "rlgen.counters"])
def test_what_all_import_imports_nothing_of_ours(module):
    assert not imported(module)


def loaded_by(statement: str) -> tuple[float, set[str]]:
    """Seconds that a statement takes in a new Python, and the top-level packages that are loaded then."""
    code = (
        f"import sys, time; start = time.perf_counter(); {statement}; seconds = time.perf_counter() - start; "
        "names = sorted({name.split('.')[0] for name in sys.modules}); import json; print(json.dumps([seconds, names]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, names = json.loads(done.stdout)
    return seconds, set(names)


def test_importing_rlgen_is_instant():
    runs = [loaded_by("import rlgen") for _ in range(3)]
    assert not runs[0][1] & {"torch", "numpy", "pymatgen", "ray", "transformers", "hydra", "policies", "rewards"}
    assert min(seconds for seconds, _ in runs) < 0.3  # the best of three: a busy machine is not our fault


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("rlgen.types", {"torch", "pymatgen", "ray"}),
        ("rlgen.config", {"torch", "pymatgen", "ray", "hydra"}),
        ("rlgen.data", {"torch", "ray", "matgl"}),
        ("rlgen.reward_pool", {"torch", "ray", "matgl", "chgnet"}),
        ("policies.sampler", {"ray", "matgl", "chgnet", "trl"}),
    ],
)
def test_heavy_imports_wait_until_they_are_needed(module, heavy):
    assert not loaded_by(f"import {module}")[1] & heavy
