"""Counts events of this process: what happens deep below a reward, and should be seen in a run's curves.

The reward pool gathers the counts of its workers and its own with every batch, and `rlgen.tracking` writes them:
`name` as `pool/name`, and a name with a slash (`guard/overlap`) as it is. What a worker counted over a task that it
died of is lost.
"""

from __future__ import annotations

import threading
from collections import Counter

_counts: Counter[str] = Counter()
_lock = threading.Lock()


def count(name: str, n: int = 1) -> None:
    """Add n to an event's count."""
    with _lock:
        _counts[name] += n


def drain(prefix: str = "") -> Counter[str]:
    """What was counted since the last call, of the events whose name begins so; others are left."""
    with _lock:
        return Counter({name: _counts.pop(name) for name in [*_counts] if name.startswith(prefix)})
