"""Typed settings of the entry points, composed by Hydra from `configs/`; a mistake gets a line with what is known."""

from __future__ import annotations

import copy
import difflib
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlgen.memory import SHAPES
from rlgen.settings import FREE, LEAST, SCHEMAS, SHARES, SHORT
from rlgen.types import UserError

if TYPE_CHECKING:
    import torch


CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def load(verb: str, arguments: Sequence[str] | None = None) -> Any:
    """The merged, typed settings of an entry point from `key=value` arguments; `--help` prints them and exits.

    Raises UserError for an unknown key or option (listing the known ones) and for a value of the wrong type.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if any(a in ("-h", "--help") for a in arguments):
        _show(_help(verb))
        raise SystemExit(0)
    for argument in arguments:
        if "=" not in argument:
            raise UserError(f"{argument!r} is not key=value; see python -m rlgen.{verb} --help")
    split = [argument.split("=", 1) for argument in arguments]
    pairs = [(SHORT.get(verb, {}).get(key, key), value) for key, value in split]
    groups = _groups(verb)
    directory = dict(pairs).get("resume", "null")
    if directory != "null":
        config = _going_on(verb, Path(directory), pairs, groups)
    else:
        config = _compose(verb, [_option(groups, key, value) for key, value in pairs if key in groups])
        for key, value in pairs:
            if key not in groups:
                _set(config, verb, key, value)
        config = _complete(verb, config)
    if verb == "finetune" and config.stages and "steps" in dict(pairs):
        raise UserError("steps= cannot be given with stages=: a run has the steps of its stages")
    return config


def _going_on(verb: str, directory: Path, pairs: list[tuple[str, str]], groups: dict[str, list[str]]) -> Any:
    """The settings of the run in a folder, with what is given anew, which must be meant if it changes what is learnt.

    UserError lists what would change, as "key: old → new".
    """
    config = stored_settings(verb, directory)
    for key, value in pairs:
        if key in groups or key == "output":
            raise UserError(f"resume= goes on with the run's own {key}: leave out {key}=")
        _set(config, verb, key, value)
    meant, config.resume_changed, config.output = config.resume_changed, False, str(directory)
    config = _complete(verb, config)
    changes = changes_of(verb, config)
    if not meant and any(change.split(":")[0] not in FREE[verb] for change in changes):
        listed = "\n".join(f"  {change}" for change in changes)
        raise UserError(f"resume={directory} would change the run's settings:\n{listed}\n"
                        "its curves would be of one run before and of another after; if that is meant, add "
                        "resume_changed=true")
    return config


def stored_settings(verb: str, directory: Path, key: str = "resume") -> Any:
    """The settings with which the run in a folder was started. UserError if there is no run.

    key: the setting that names the folder, for errors.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not (directory / "config.yaml").exists():
        raise UserError(f"{key}={directory}: no run there (config.yaml is missing)")
    try:
        return OmegaConf.merge(OmegaConf.structured(SCHEMAS[verb]), OmegaConf.load(directory / "config.yaml"))
    except OmegaConfBaseException as error:
        raise UserError(f"{key}={directory}: config.yaml is not one of this version: "
                        f"{str(error).splitlines()[0]}") from error


def changes_of(verb: str, config: Any) -> list[str]:
    """What differs between the settings of a resumed run and those it was started with, as "key: old → new"."""
    from omegaconf import OmegaConf

    if config.resume is None:
        return []
    old, new = ({key: OmegaConf.select(one, key) for key in known_keys(verb)}
                for one in (stored_settings(verb, Path(config.resume)), config))
    return [f"{key}: {old[key]} → {new[key]}" for key in new
            if old[key] != new[key] and key not in ("output", "resume", "resume_changed")]


def changed(verb: str, config: Any, settings: Mapping[str, Any]) -> Any:
    """A copy of some settings in which others are set, by dotted key."""
    config = copy.deepcopy(config)
    for key, value in settings.items():
        _set(config, verb, key, value)
    return _complete(verb, config)


def known_keys(verb: str) -> list[str]:
    """All settings of an entry point, dotted."""
    return _keys(SCHEMAS[verb])


def _keys(schema: Any, prefix: str = "") -> list[str]:
    found = []
    for item in fields(schema):
        default = item.default_factory() if callable(item.default_factory) else None
        nested = is_dataclass(default)
        found += _keys(type(default), f"{prefix}{item.name}.") if nested else [prefix + item.name]
    return found


def _groups(verb: str) -> dict[str, list[str]]:
    """Config groups of an entry point and their options, e.g. {"policy": ["base", "small", "tiny"]}."""
    names = {item.name for item in fields(SCHEMAS[verb])
             if callable(item.default_factory) and is_dataclass(item.default_factory())}
    return {p.name: sorted(f.stem for f in p.glob("*.yaml")) for p in sorted(CONFIGS.iterdir()) if p.name in names}


def _option(groups: dict[str, list[str]], key: str, value: str) -> str:
    if value not in groups[key]:
        raise UserError(f"unknown {key}={value}; known: {', '.join(groups[key])}")
    return f"{key}={value}"


def _compose(verb: str, overrides: list[str]) -> Any:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=f"{verb}_schema", node=SCHEMAS[verb])
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        return compose(config_name=verb, overrides=overrides)


def _set(config: Any, verb: str, key: str, value: Any) -> None:
    """Set one typed key, or a free one below a mapping (`reward.stability.mode`), from text or to a value."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = known_keys(verb)
    if key.startswith("algorithm.") and verb == "finetune":
        known = [name for name in known if not name.startswith("algorithm.")] + _algorithm(config.algorithm.name)
    free = any(key.startswith(f"{k}.") and OmegaConf.is_dict(OmegaConf.select(config, k)) for k in known)
    if key not in known and not free:
        close = difflib.get_close_matches(key, known, 1)
        if key in known_keys(verb):
            raise UserError(f"algorithm={config.algorithm.name} has no {key}; it has "
                            f"{', '.join(_algorithm(config.algorithm.name))}")
        raise UserError(f"unknown key {key!r}{f'; did you mean {close[0]!r}?' if close else ''}\n"
                        f"known keys: {', '.join(known)}")
    try:
        if isinstance(value, str):
            value = read_value(value) if free else None if value == "null" else value
        OmegaConf.update(config, key, value, force_add=free)
    except OmegaConfBaseException as error:
        raise UserError(f"{key}={value}: {str(error).splitlines()[0]}") from error


def _algorithm(name: str) -> list[str]:
    """The dotted settings that an algorithm has: those of its file, but for its name, which `algorithm=` says."""
    from omegaconf import OmegaConf

    return [f"algorithm.{key!s}" for key in OmegaConf.load(CONFIGS / "algorithm" / f"{name}.yaml") if key != "name"]


def read_value(text: str) -> Any:
    """A number, [list], true, false or null as such; all else stays text (YAML would read the element No as false)."""
    if text.startswith("[") and text.endswith("]"):
        return [read_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            pass
    return {"true": True, "false": False, "null": None}.get(text, text)


def _complete(verb: str, config: Any) -> Any:
    from omegaconf import OmegaConf

    # A policy's file cannot leave a key to be given with ???, which does not override a default.
    no_path = ["policy.path"] if verb == "pretrain" and config.policy.path == "" else []
    missing = sorted([*OmegaConf.missing_keys(config), *no_path])
    if missing:
        raise UserError(f"{', '.join(missing)} must be given: python -m rlgen.{verb} {missing[0]}=…")
    for key in known_keys(verb):
        value, name = OmegaConf.select(config, key), key.rpartition(".")[2]
        if name in LEAST and value is not None and not value >= LEAST[name]:  # not "<": NaN is refused too
            raise UserError(f"{key}={value}: must be at least {LEAST[name]}")
        if (name in SHARES or key in SHARES) and not 0 <= value <= 1:
            raise UserError(f"{key}={value}: must be between 0 and 1")
        if name == "shape" and value not in SHAPES:
            raise UserError(f"{key}={value}; known: {', '.join(SHAPES)}")
    if verb == "finetune" and config.stages:
        from rlgen import stages

        config.stages = stages.read(config.stages)
        config.steps = sum(stage["steps"] for stage in config.stages)
    return config


def _help(verb: str) -> str:
    """The commented YAML of an entry point with its groups: the help and the settings are one text."""
    lines = [f"usage: python -m rlgen.{verb} key=value …",
             f"       python -m rlgen.{verb} --multirun key=value,other …    (every combination)", "",
             (CONFIGS / f"{verb}.yaml").read_text(encoding="utf-8").split("---", 1)[-1].strip()]
    for group, options in _groups(verb).items():
        lines += ["", f"{group}: one of {', '.join(options)}" if group != "reward" else
                  "reward=EXPRESSION, e.g. novelty+2*stability (a weighted mean) or novelty*stability (geometric mean)"]
        for option in options:
            text = (CONFIGS / group / f"{option}.yaml").read_text(encoding="utf-8").strip()
            lines.append(f"  {group}={option}" if group != "reward" else "")
            lines += [f"    {line}" for line in text.splitlines()]
    return "\n".join(lines)


def _show(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `--help | head`; Python would complain again when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def resumed(config: Any) -> tuple[Any, Path | None]:
    """The settings to run with and the checkpoint to go on from.

    The checkpoint is None for a new run, and for one that was killed before its first: that one starts again.
    """
    if config.resume is None:
        return config, None
    from rlgen import checkpoint

    last = checkpoint.latest(config.resume)
    config = copy.deepcopy(config)
    config.resume = None
    return config, last


def plain(config: Any) -> dict[str, Any]:
    """A mapping of the settings as a dict."""
    from omegaconf import OmegaConf

    container = OmegaConf.to_container(config)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def architecture(policy: Any) -> dict[str, Any]:
    """The settings that count for a policy: which one it learns on from, those of a language model, or sizes."""
    language_model = {"path", "dtype", "lora_rank", "lora_alpha", "lora_dropout"}
    given = plain(policy)
    if policy.start is not None:
        counting = {"start"}
    else:
        counting = language_model if policy.path is not None else set(given) - language_model - {"start"}
    return {key: value for key, value in given.items() if key.startswith("representation") or key in counting}


def device_of(name: str) -> torch.device:
    """"auto" is the GPU where there is one."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):  # no such device, or one that this torch or this machine does not have
        raise UserError(f"device={name!r} cannot be used here; known: auto, cpu, cuda, cuda:0, …") from None


def main(verb: str, run: Any) -> None:
    """Load settings and run an entry point, or a sweep of it (--multirun).

    The user's mistakes end it with one clear message and exit code 2.
    """
    from rlgen import multirun

    # pymatgen warns of each element without an electronegativity and of its own use of a deprecated gcd.
    warnings.filterwarnings("ignore", message="No Pauling electronegativity")
    warnings.filterwarnings("ignore", message="gcd is deprecated")
    try:
        if multirun.FLAG in sys.argv:
            raise SystemExit(multirun.run(verb, sys.argv[1:], SCHEMAS[verb]().output or f"runs/{verb}"))
        run(load(verb))
    except (UserError, PermissionError) as error:
        print(f"rlgen.{verb}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        again = verb in ("hull", "annotate")
        how = "when it is called again" if again else "from its last checkpoint with resume=FOLDER"
        print(f"rlgen.{verb}: interrupted; a run goes on {how}", file=sys.stderr)
        raise SystemExit(130) from None
