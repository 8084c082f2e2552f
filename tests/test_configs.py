"""Every shipped file of settings runs: one step of each algorithm, policy and command, as small as it gets."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import CRYSTALS
from test_hf import language_model

from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from policies.representations import make
from rlgen import annotate, evaluate, explore, finetune, foretell, merge, predict, pretrain, relax, sample, samples
from rlgen.config import CONFIGS, load
from rlgen.energies import TAUGHT, weights
from rlgen.hull import Hull
from rlgen.hull import __main__ as hull_command
from rlgen.samples import to_cif

FILES = sorted(str(file.relative_to(CONFIGS)) for file in CONFIGS.rglob("*.yaml"))


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    CrystalPolicy.create(make("atoms", max_atoms=5), hidden_size=16, layers=1, heads=2,
                         intermediate_size=32).save_pretrained(folder)
    PromptTable.of([225, 221, 139], [[11, 17], [22, 38, 8, 8, 8], [29]]).save(folder)
    return folder


@pytest.fixture(scope="module")
def crystals(tmp_path_factory) -> Path:
    """A data set of six small crystals."""
    file = tmp_path_factory.mktemp("data") / "crystals.csv"
    names = ["rock salt", "diamond", "hcp", "wurtzite", "rutile", "perovskite"]
    pd.DataFrame({"cif": [to_cif(CRYSTALS[name].get_primitive_structure()) for name in names]}).to_csv(file)
    return file


@pytest.mark.parametrize("file", FILES)
def test_it_runs(file, policy, crystals, tmp_path):
    group, _, name = file.removesuffix(".yaml").rpartition("/")
    out = tmp_path / "out"
    if group == "policy" or name == "pretrain":
        more = [f"policy={name}"] if group else []
        if name == "hf":
            more.append(f"policy.path={language_model(tmp_path / 'model')}")
        pretrain.run(load("pretrain", [*more, "policy.layers=1", f"data={crystals}", f"output={out}", "steps=1",
                                       "batch=2", "sample_every=0", "device=cpu"]))
        assert (out / "policy" / "config.json").exists()
    elif group == "algorithm" or name == "finetune":
        more = [f"algorithm={name}"] if group else []
        finetune.run(load("finetune", [*more, f"policy={policy}", "reward=validity", f"data={crystals}", "steps=1",
                                       "batch=4", "algorithm.group_size=2", "workers=0", "evaluate=0", "device=cpu",
                                       f"output={out}"]))
        assert (out / "policy" / "model.safetensors").exists()
    elif name == "sample":
        sample.run(load("sample", [f"policy={policy}", "n=2", f"output={out}", "device=cpu"]))
        assert len(pd.read_parquet(out / "samples.parquet")) == 2
    elif name == "evaluate":
        samples.write(out, [CRYSTALS["rock salt"]])
        evaluate.run(load("evaluate", [f"input={out}", "energy=chgnet", "relax_steps=1", "workers=0",
                                       "real=null", f"output={tmp_path / 'report'}"]))
        assert (tmp_path / "report" / "table.md").exists()
    elif name == "relax":
        samples.write(out, [CRYSTALS["diamond"]])
        relax.run(load("relax", [f"input={out}", f"output={tmp_path / 'relaxed'}", "energy=chgnet", "steps=1",
                                 "workers=0"]))
        assert len(pd.read_parquet(tmp_path / "relaxed" / "samples.parquet")) == 1
    elif name == "foretell":
        if weights.folder_of(weights.MEGNET) is None:
            pytest.skip(f"MEGNet's weights are not here: set RLGEN_MODELS to a folder with {weights.MEGNET}")
        samples.write(out, [CRYSTALS["diamond"], CRYSTALS["rutile"]])
        relax.run(load("relax", [f"input={out}", f"output={tmp_path / 'relaxed'}", "energy=chgnet", "steps=1",
                                 "workers=0", "formats="]))
        foretell.run(load("foretell", [f"input={out}", f"relaxed={tmp_path / 'relaxed'}", "epochs=1", "held_out=0",
                                       f"output={tmp_path / 'foretold'}"]))
        assert (tmp_path / "foretold" / TAUGHT).exists()
    elif name == "merge":
        finetune.run(load("finetune", [f"policy={policy}", "reward=validity", f"data={crystals}", "steps=1", "batch=8",
                                       "workers=0", "evaluate=0", "device=cpu", f"output={tmp_path / 'run'}"]))
        merge.run(load("merge", [f"runs={tmp_path / 'run'},{tmp_path / 'run'}", f"output={out}"]))
        assert (out / "model.safetensors").exists()
    elif name == "explore":
        explore.run(load("explore", ["elements=Na-Cl", "n=4", f"output={out}", "energy=chgnet",
                                     "steps=1", "workers=0", "device=cpu"]))
        assert len(pd.read_csv(out / "ranked.csv")) and (out / "hull.svg").exists()
    elif name == "predict":
        predict.run(load("predict", ["formula=NaCl", "n=3", f"output={out}", "energy=chgnet", "steps=1", "workers=0",
                                     "device=cpu"]))
        assert set(pd.read_csv(out / "ranked.csv")["formula"]) == {"NaCl"}
    elif name == "annotate":
        annotate.run(load("annotate", [f"data={crystals}", f"output={out}", "columns=e_above_hull", "energy=chgnet",
                                       "workers=0"]))
        assert (out / "train.csv.gz").exists()
    elif name == "hull":
        elements = tmp_path / "elements.csv"
        pd.DataFrame({"cif": [to_cif(CRYSTALS[kind]) for kind in ("diamond", "hcp")] * 10}).to_csv(elements)
        hull_command.run(load("hull", [f"data={elements}", "energy=chgnet", "workers=0", f"output={out}.parquet"]))
        assert set(Hull.read(Path(f"{out}.parquet")).sources.values()) == {"elements"}
    else:
        pytest.fail(f"no test runs configs/{file}")
