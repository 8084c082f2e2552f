"""Known crystals in one SQLite file, found by their formula: millions of them need hardly any memory.

A row is a crystal's reduced formula and its arrays; what is asked for is read, nothing is held. A crystal takes 25
bytes per atom and about 120 besides (5 million of ten atoms: 2 GB on disk).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pymatgen.core import Structure

from rlgen.data.records import Record
from rlgen.types import UserError

SUFFIX = ".sqlite"
#: Raise when rows are written in another way.
VERSION = "1"
_LATTICE, _PER_ATOM = 9 * 8, 1 + 3 * 8


def formula_key(numbers: np.ndarray | Iterable[int]) -> bytes:
    """The reduced formula of atomic numbers (N,), as pairs of Z and count: a bucket that equal crystals share."""
    found = np.asarray(numbers if isinstance(numbers, np.ndarray) else list(numbers))
    elements, counts = np.unique(found, return_counts=True)
    counts //= np.gcd.reduce(counts)
    return np.stack([elements, counts], axis=1).astype("<u2").tobytes()


def pack(record: Record) -> bytes:
    """A crystal's lattice (3, 3), atomic numbers (N,) and fractional coordinates (N, 3), exact to the bit."""
    arrays = (record.lattice, "<f8"), (record.numbers, "u1"), (record.frac_coords, "<f8")
    return b"".join(np.ascontiguousarray(array, dtype=kind).tobytes() for array, kind in arrays)


def unpack(blob: bytes) -> Structure:
    """The crystal that `pack` wrote."""
    n = (len(blob) - _LATTICE) // _PER_ATOM
    lattice = np.frombuffer(blob, "<f8", 9).reshape(3, 3)
    frac = np.frombuffer(blob, "<f8", 3 * n, _LATTICE + n).reshape(n, 3)
    return Record.from_arrays("", lattice, np.frombuffer(blob, "u1", n, _LATTICE), frac, {}).structure


class CrystalIndex:
    """The crystals of a data set, by formula. size: how many; source: of what, for reports."""

    def __init__(self, connection: sqlite3.Connection):
        self._connection = connection
        about = dict(connection.execute("SELECT key, value FROM about"))
        if about.get("version") != VERSION:
            raise UserError(f"an index of version {about.get('version')}, not {VERSION}: build it again")
        self.size, self.source = int(about["size"]), about["source"]

    @classmethod
    def open(cls, path: Path | str) -> CrystalIndex:
        """The index in a file. UserError if there is none."""
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file (python -m rlgen.build_reference DATA {path} makes it)")
        try:
            # Nothing is ever written to a finished index, so readers need no locks, in any number of processes.
            address = f"{Path(path).resolve().as_uri()}?mode=ro&immutable=1"
            return cls(sqlite3.connect(address, uri=True, check_same_thread=False))
        except (sqlite3.Error, UserError) as error:
            raise UserError(f"{path}: cannot be read as an index of crystals: {error}") from error

    @classmethod
    def build(cls, records: Iterable[Record], source: str, path: Path | None = None) -> CrystalIndex:
        """Write an index to a file, aside and renamed; without a path it is kept in memory."""
        rows = ((formula_key(record.numbers), pack(record)) for record in records)
        return cls.build_from_rows(rows, source, path)

    @classmethod
    def build_from_rows(cls, rows: Iterable[tuple[bytes, bytes]], source: str, path: Path | None) -> CrystalIndex:
        """As `build`, from rows of `formula_key` and `pack`."""
        aside = None if path is None else path.with_name(f".{path.name}.tmp")
        if aside is not None:
            aside.parent.mkdir(parents=True, exist_ok=True)
            aside.unlink(missing_ok=True)
        connection = sqlite3.connect(aside or ":memory:", check_same_thread=False)
        connection.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE crystals (formula BLOB NOT NULL, crystal BLOB NOT NULL);"
            "CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);"
        )
        with connection:
            connection.executemany("INSERT INTO crystals VALUES (?, ?)", rows)
            size = connection.execute("SELECT COUNT(*) FROM crystals").fetchone()[0]
            about = {"version": VERSION, "size": str(size), "source": source}
            connection.executemany("INSERT INTO about VALUES (?, ?)", about.items())
        # Sorting all rows at once is much faster than keeping an index up to date from row to row.
        connection.execute("CREATE INDEX by_formula ON crystals (formula)")
        if path is None or aside is None:
            return cls(connection)
        connection.close()
        aside.replace(path)
        return cls.open(path)

    def of_formula(self, key: bytes) -> list[tuple[bytes, int]]:
        """The crystals of a formula, each as `pack` wrote it, and the atoms in its cell."""
        rows = self._connection.execute("SELECT crystal FROM crystals WHERE formula = ?", (key,))
        return [(crystal, (len(crystal) - _LATTICE) // _PER_ATOM) for (crystal,) in rows]
