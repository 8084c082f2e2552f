"""The process-wide count of events."""

import threading

from rlgen.counters import count, drain


def test_counts_are_handed_out_once():
    drain()
    count("guard/overlap")
    count("cache_hits", 3)
    count("cache_hits")
    assert drain() == {"guard/overlap": 1, "cache_hits": 4}
    assert drain() == {}


def test_no_count_is_lost_between_threads():
    drain()
    threads = [threading.Thread(target=lambda: [count("event") for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    drained = sum((drain() for _ in range(50)), start=drain())
    for thread in threads:
        thread.join()
    assert (drained + drain())["event"] == 8000
