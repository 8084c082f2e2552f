"""Crystals to learn from: `load("mp20")`, `load("prototypes")`, `load("my.csv")`."""

from rlgen.data.cache import cache_dir
from rlgen.data.loading import load, split
from rlgen.data.records import BrokenRow, DataReport, Dataset, Record

__all__ = ["BrokenRow", "DataReport", "Dataset", "Record", "cache_dir", "load", "split"]
