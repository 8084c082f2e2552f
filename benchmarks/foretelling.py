"""How well rewards of crystals as written foretell what relaxing them finds.

    python -m rlgen.sample n=768 seed=7 output=runs/some
    python -m rlgen.evaluate input=runs/some energy=m3gnet relax_steps=40 real=null output=runs/judged
    python benchmarks/foretelling.py runs/some runs/judged

For the reward `stability` of each potential named after the folders (without one: m3gnet), `formation`, and their mean:
the correlation of score x novelty with S.U.N. as judged, over all samples, and of the novel ones the correlation of the
score with being metastable, and the area under the curve of true against false positives.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from pymatgen.core import Structure

from rewards.formation import Formation
from rewards.stability import Stability
from rlgen import samples as stored
from rlgen.metrics import roc_auc


def main(samples: str, judged: str, *potentials: str) -> None:
    crystals = stored.read(samples).crystals
    table = pd.read_parquet(Path(judged) / "judged_0.parquet")
    whole = [i for i, crystal in enumerate(crystals) if isinstance(crystal, Structure)]
    rewards = [Stability(name, max_force=np.inf, width=1.0) for name in potentials or ("m3gnet",)] + [Formation()]
    scores: dict[str, np.ndarray] = {}
    for reward in rewards:
        reward.warm_up()
        started, score = time.process_time(), np.zeros(len(crystals))
        structures = [c for c in crystals if isinstance(c, Structure)]
        score[whole] = np.nan_to_num(reward.transform(reward.measure(structures, [{}] * len(structures))))
        name = f"{reward.name}, {reward.energy}, width {reward.width:g}"
        print(f"{name}: {1e3 * (time.process_time() - started) / len(whole):.1f} ms of CPU a crystal")
        scores[name] = score
    scores["their mean"] = np.mean(list(scores.values()), axis=0)
    novel, sun = table["novel"].to_numpy(bool), table["sun"].to_numpy(float)
    metastable = (table["e_above_hull"] <= 0.1).to_numpy()
    print(f"\n{len(table)} samples, {novel.mean():.1%} novel, {sun.mean():.1%} S.U.N. as judged\n\n"
          "| score | with S.U.N. | with metastable, of the novel | area, of the novel |\n|---|---:|---:|---:|")
    for name, score in scores.items():
        print(f"| {name} | {np.corrcoef(score * novel, sun)[0, 1]:.2f} | "
              f"{np.corrcoef(score[novel], metastable[novel])[0, 1]:.2f} | "
              f"{roc_auc(score[novel], metastable[novel]):.2f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
