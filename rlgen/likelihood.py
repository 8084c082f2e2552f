"""How likely real crystals are under a policy: what it has learnt from them, and later whether it forgets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.model import CrystalPolicy
from rlgen import data
from rlgen.encoded import Encoded, encode

#: 256 crystals of MP-20's validation split, drawn at random: what `data=shipped` means here.
SHIPPED = Path(__file__).parent / "assets" / "real_mp20.parquet"
#: Crystals that stand for a data set.
CRYSTALS = 256


@torch.no_grad()
def nll(policy: CrystalPolicy, crystals: Encoded, *, limit: int | None = None, batch: int = 128) -> tuple[float, float]:
    """Mean negative log-likelihood (nats) per crystal and per atom, with every condition given, in float32."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(crystals))[:limit]
    rows = rows[np.argsort([len(crystals.ids[i]) for i in rows], kind="stable")]
    total = 0.0
    policy.eval()
    for start in range(0, len(rows), batch):
        ids, labels = crystals.batch(rows[start : start + batch], policy.representation, rng, dropout=0.0)
        ids, labels = ids.to(policy.device), labels.to(policy.device)
        total += float(policy(ids, labels=labels).loss) * int((labels[:, 1:] != -100).sum())
    return total / len(rows), total / int(crystals.prompts.n_atoms[rows].sum())


def real_crystals(name: str, representation: Any) -> Encoded:
    """The same `CRYSTALS` crystals for every run: of a data set's validation split, or those that rlgen ships."""
    if name == "shipped":
        records = [record for split in data.load(SHIPPED, limit=CRYSTALS).splits.values() for record in split]
    else:
        records = data.load(name).splits["val"][:CRYSTALS]
    return encode(records, representation)
