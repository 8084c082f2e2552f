"""What a command asks for: every combination of the values that are given."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from rlgen.config import read_value
from rlgen.types import UserError


def combinations(condition: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of what is asked, where a key has several values: a list, or text with commas.

    null among them leaves the key out. The symbols of `elements` are one value, "Li,Fe,O" or [Li, Fe, O]; several are
    [Li-Fe-O, Na-Fe-O]. UserError for a key without a value.
    """
    values = {key: _values(key, value) for key, value in condition.items()}
    if empty := [key for key, several in values.items() if not several]:
        raise UserError(f"condition.{empty[0]}: an empty list asks for nothing; leave it out")
    return [{key: value for key, value in zip(values, chosen, strict=True) if value is not None}
            for chosen in product(*values.values())]


def _values(key: str, value: Any) -> list[Any]:
    if key == "elements":
        return value if isinstance(value, list) and any("-" in str(one) for one in value) else [value]
    if isinstance(value, str):
        return [read_value(part.strip()) for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, list | tuple) else [value]
