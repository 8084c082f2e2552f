"""Where matgl's checkpoints are: a folder of the user's, matgl's cache, or matgl's hub; never a long wait."""

from __future__ import annotations

import logging
import os
import threading
import urllib.request
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlgen.types import UserError

log = logging.getLogger(__name__)

M3GNET = "M3GNet-MP-2021.2.8-PES"
TENSORNET = "TensorNet-MatPES-PBE-v2025.1-PES"
MEGNET = "MEGNet-MP-2018.6.1-Eform"
#: The organisation on the hub that publishes matgl's checkpoints.
PUBLISHER = "materialyze"
FILES = ("model.pt", "state.pt", "model.json")
PROBE_SECONDS = 3.0


@lru_cache(maxsize=4)
def folder_of(model: str) -> Path | None:
    """The folder with the three files of a checkpoint, downloaded if the hub answers; None if it cannot be had."""
    root = os.environ.get("RLGEN_MODELS")
    if root and _complete(Path(root) / model):
        return Path(root) / model
    return _from_hub(model, offline=True) or (_from_hub(model, offline=False) if _hub_answers() else None)


def read(folder: Path) -> Any:
    """What matgl makes of a checkpoint, to evaluate only; UserError: a broken one."""
    import matgl  # seconds to import: only who evaluates pays for it
    import torch
    from matgl.data.transformer import Normalizer

    # matgl reads the files with torch's weights-only unpickler: a checkpoint cannot run code.
    torch.serialization.add_safe_globals([Normalizer])  # a mean and a deviation
    try:
        return matgl.load_model(str(folder)).eval().requires_grad_(False)
    except Exception as error:  # whatever a broken file makes of matgl
        raise UserError(f"{folder}: matgl cannot load it ({type(error).__name__}: {error})") from error


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def _from_hub(model: str, *, offline: bool) -> Path | None:
    """matgl's own cache (the same that `matgl.load_model` fills), asking the network only if not `offline`."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    cache = Path.home() / ".cache" / "matgl"  # matgl.config.MATGL_CACHE, without importing matgl
    repository = f"{PUBLISHER}/{model}"
    try:
        paths = [
            Path(hf_hub_download(repository, name, cache_dir=cache, local_files_only=offline, etag_timeout=5))
            for name in FILES
        ]
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if not offline:
            log.warning("%s could not be downloaded: %s", model, error)
        return None
    return paths[0].parent


def _hub_answers() -> bool:
    """Whether the hub can be reached: its client retries for minutes where there is no network, this takes seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return False
    answers: list[bool] = []
    # In a thread, because looking up a name has no time limit of its own.
    probe = threading.Thread(target=lambda: answers.append(_probe()), daemon=True)
    probe.start()
    probe.join(2 * PROBE_SECONDS)
    return bool(answers and answers[0])


def _probe() -> bool:
    """One request through the user's proxies, if any."""
    from huggingface_hub.constants import ENDPOINT

    try:
        urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=PROBE_SECONDS).close()
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors; a malformed endpoint is a ValueError
        log.info("no answer from %s (%s)", ENDPOINT, error)
        return False
    return True
