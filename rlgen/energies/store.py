"""Texts under keys in one SQLite file that many processes read and write; whatever is wrong with it, work goes on."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from rlgen.data import cache_dir

log = logging.getLogger(__name__)

FILE = "energies.sqlite"
#: A writer waits so long for another one.
PATIENCE_S = 30.0
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
T = TypeVar("T")


class Store:
    """A file that is broken is moved aside and a new one begun; one that cannot be used is done without. Both warn."""

    def __init__(self, path: Path):
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._usable = True
        self._lock = threading.Lock()

    def get(self, keys: Iterable[bytes]) -> dict[bytes, str]:
        """The texts of those keys that are known."""

        def read(connection: sqlite3.Connection) -> dict[bytes, str]:
            query = "SELECT text FROM results WHERE key = ?"
            found = {key: connection.execute(query, (key,)).fetchone() for key in keys}
            return {key: row[0] for key, row in found.items() if row is not None}

        return self._attempt(read, {})

    def put(self, texts: Mapping[bytes, str]) -> None:
        """Keep the texts; all or, if this process is killed meanwhile, none."""

        def write(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany("INSERT OR REPLACE INTO results VALUES (?, ?)", texts.items())

        self._attempt(write, None)

    def _attempt(self, action: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        with self._lock:
            if not self._usable:
                return otherwise
            try:
                return action(self._connected())
            except (sqlite3.Error, OSError) as error:
                self._recover(error)
                return otherwise

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=PATIENCE_S, check_same_thread=False)
            self._connection, self._inode = connection, self.path.stat().st_ino
            # Readers and a writer do not wait for each other; what a power cut loses is only computed again.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("CREATE TABLE IF NOT EXISTS results (key BLOB PRIMARY KEY, text TEXT) WITHOUT ROWID")
        return self._connection

    def _recover(self, error: Exception) -> None:
        code = getattr(error, "sqlite_errorcode", 0)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if code == sqlite3.SQLITE_READONLY_DBMOVED:
            return  # another process has moved it aside: there is, or will be, a new one
        if code & 0xFF not in _BROKEN:
            log.warning("%s: going on without this cache: %s", self.path, error)
            self._usable = False
            return
        try:
            if self.path.stat().st_ino == self._inode:  # else another process was faster
                aside = self.path.with_name(f"{self.path.name}.broken-{time.time_ns()}")
                for end in ("-wal", "-shm"):
                    self.path.with_name(self.path.name + end).unlink(missing_ok=True)
                self.path.rename(aside)
                log.warning("%s is broken (%s): moved to %s, beginning a new one", self.path, error, aside.name)
        except OSError as problem:
            log.warning("%s is broken (%s) and cannot be moved aside: %s", self.path, error, problem)
            self._usable = False


@lru_cache(maxsize=1)
def _store(path: Path) -> Store:
    return Store(path)


def store() -> Store:
    """The store in the user's cache folder."""
    return _store(cache_dir() / FILE)
