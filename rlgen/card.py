"""A policy's README.md as the Hugging Face Hub reads it: metadata, the text, and how to use the policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from rlgen.report import as_markdown

if TYPE_CHECKING:
    from rlgen.evaluation import Evaluation

FILE = "README.md"
#: What data sets are called elsewhere. Policies that learnt from other data get no license: that is their owner's say.
_DATA = {"mp20": "mp_20", "shipped": "mp_20", "prototypes": "aflow-prototypes"}
#: Shares of a fine-tuned policy's samples that the Hub is told.
_SHARES = ("valid", "unique", "novel", "metastable", "stable", "sun")
_USE = """
Use it (rlgen's repository has the rest):

```sh
hf download USER/NAME --local-dir policy         # or from the folder that this file lies in
python -m rlgen.sample policy=policy n=1000 output=my_crystals
python -m rlgen.finetune policy=policy reward=novelty+stability
```
"""


def write(folder: Path, text: str, data: str, measured: Mapping[str, float], base: str | None = None) -> None:
    """Put a text in `README.md` with what the Hub asks for.

    data: what the policy learnt from. measured: shares (0 to 1) of its samples, by name. base: the policy that it was
    made from.
    """
    (folder / FILE).write_text(f"---\n{metadata(data, measured, base)}\n---\n{text}{_USE}", encoding="utf-8")


def metadata(data: str, measured: Mapping[str, float], base: str | None = None) -> str:
    """The Hub's metadata as YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    known = _DATA.get(data)
    results = [
        EvalResult(
            task_type="unconditional-crystal-generation", dataset_type=known or Path(data).stem,
            dataset_name=known or Path(data).stem, metric_type=name, metric_name=name, metric_value=round(value, 4),
        )
        for name, value in measured.items()
    ]  # fmt: skip
    card = ModelCardData(
        license="apache-2.0" if known else None,
        library_name="rlgen",
        tags=["materials-science", "crystal-structure", "crystal-generation", "transformers"]
        + (["reinforcement-learning"] if base else []),
        datasets=[known or Path(data).stem],
        metrics=list(measured) or None,
        model_name="rlgen policy" if results else None,
        eval_results=results or None,
        rlgen_base=base,
    )
    return card.to_yaml().strip()


def write_finetuned(folder: Path, config: Any, parameters: int, judged: Mapping[str, Evaluation]) -> None:
    """README.md of a fine-tuned policy. judged: before and after, in this order, or nothing."""
    text = f"""# A policy fine-tuned with rlgen

| | |
|---|---|
| from | {config.policy} |
| reward | {config.reward.expression} |
| algorithm | {config.algorithm.name}, {config.steps} steps of {config.batch} crystals, seed {config.seed} |
| energies | of {config.energy} in the reward, of {config.judge} in the evaluation |
| known crystals | {config.data} |
| parameters | {parameters:,} |
"""
    measured: dict[str, float] = {}
    if judged:
        text += f"\nFresh crystals before and after:\n\n{as_markdown(judged).strip()}\n"
        after = list(judged.values())[-1].summary
        measured = {name: after[name].value for name in _SHARES}
    text += f"\nAll settings of the run:\n\n```yaml\n{OmegaConf.to_yaml(config).strip()}\n```\n"
    write(folder, text, config.data, measured, base=str(config.policy))


def write_merged(folder: Path, config: Any, runs: Mapping[str, Any], parameters: int) -> None:
    """README.md of a policy that was merged of several runs. runs: the settings of each, by its folder."""
    one = next(iter(runs.values()))
    lines = "\n".join(f"| {name} | {run.reward.expression} | {run.policy} | {run.steps} steps of {run.batch}, seed "
                      f"{run.seed} |" for name, run in runs.items())
    text = f"""# A policy merged of {len(runs)} that were fine-tuned with rlgen

The geometric mean of their policies, at strength {config.strength:g}; {parameters:,} parameters.

| run | reward | from | crystals |
|---|---|---|---|
{lines}
"""
    write(folder, text, one.data, {}, base=str(one.policy))
