"""Where the MP-20 benchmark is: a given folder, `RLGEN_DATA`, the user's cache, or its public source.

MP-20 (Xie et al., arXiv 2110.06197; data of the Materials Project, CC BY 4.0, Jain et al., APL Materials 1, 011002
(2013)): 45,229 crystals of at most 20 atoms, in three splits. Files that are found are taken as they are; only a
download is checked, against the sha256 of the published files.
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

from rlgen.data.cache import cache_dir, write_aside
from rlgen.data.progress import bar
from rlgen.types import UserError

URL = "https://raw.githubusercontent.com/txie-93/cdvae/main/data/mp_20/{split}.csv"
#: sha256 of the published files, as others noted them: each is listed in one project's audit of its benchmark copies
#: with 27,136 / 9,047 / 9,046 rows; a second project independently states the same for train, a third for val. They
#: were not computed by us from a download.
SHA256 = {
    "train": "133bab58dba02d316f9f91174839f17802dce648be4e8659d1a42b32b97fa01d",
    "val": "7b5f4085464b3eac9fd2123acee97ec372214004ce7e983b535b33395abc3e29",
    "test": "dd605c7543cf95a13e150aed630d0915e74edc8dea17e85301ee6fbfeb7f500a",
}
SPLITS = ("train", "val", "test")


def split_files(folder: Path) -> dict[str, Path] | None:
    """{train, val, test}.csv[.gz] of a folder by split, or None if one is missing."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        for name in (f"{split}.csv", f"{split}.csv.gz"):
            if (folder / name).is_file():
                found.setdefault(split, folder / name)
    return found if len(found) == len(SPLITS) else None


def find(path: str | Path | None = None) -> dict[str, Path]:
    """The three files of MP-20 by split, downloaded if they are nowhere. UserError: no way to get them."""
    if path is not None:
        folder = Path(path).expanduser()
        files = split_files(folder) or split_files(folder / "mp_20")
        if files is None:
            raise UserError(f"no train, val and test .csv or .csv.gz in {folder} or {folder / 'mp_20'}")
        return files
    for folder in _folders():
        files = split_files(folder)
        if files is not None:
            return files
    return download(cache_dir() / "mp_20")


def _folders() -> list[Path]:
    given = os.environ.get("RLGEN_DATA")
    folders = [Path(given).expanduser(), Path(given).expanduser() / "mp_20"] if given else []
    return [*folders, cache_dir() / "mp_20"]


def download(folder: Path) -> dict[str, Path]:
    """Fetch what is missing of the three files into a folder, each checked before it gets its name."""
    for split in SPLITS:
        target = folder / f"{split}.csv"
        if target.exists() or target.with_name(f"{split}.csv.gz").exists():
            continue
        url = URL.format(split=split)
        try:
            write_aside(target, partial(_fetch, url, SHA256[split]))
        except OSError as error:  # urllib.error.URLError and timeouts are OSErrors too
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise UserError(
                f"MP-20 is not here and could not be downloaded from {url} ({reason}). Set RLGEN_DATA to a folder with "
                f"train.csv, val.csv and test.csv of MP-20 (.csv.gz will do), or put them in {folder}. "
                "Without a network, data=prototypes needs no download."
            ) from error
    files = split_files(folder)
    assert files is not None, "each split is there or was just fetched"
    return files


def _fetch(url: str, sha256: str, target: Path) -> None:
    """Stream a URL into a file and check it. UserError: the content is not what was published."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=60) as response, target.open("wb") as out:
        length = response.headers.get("Content-Length")
        with bar(f"Downloading {url.rsplit('/', 1)[-1]}", int(length) if length else None) as progress:
            while block := response.read(1 << 16):
                digest.update(block)
                out.write(block)
                progress.advance(len(block))
    if digest.hexdigest() != sha256:
        raise UserError(
            f"what {url} sent is not the published file (sha256 {digest.hexdigest()}, expected {sha256}). Nothing was "
            "kept. Try again if the connection was cut; if the file was changed on purpose, fetch it yourself and set "
            "RLGEN_DATA to its folder."
        )
