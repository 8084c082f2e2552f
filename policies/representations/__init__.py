"""The ways of writing a crystal as tokens. The table below is the only list of them."""

from __future__ import annotations

from typing import Any

from rlgen.types import UserError

REPRESENTATIONS = {
    "atoms": "policies.representations.atoms:Atoms",
    "orbits": "policies.representations.orbits:Orbits",
    "text": "policies.representations.text:Text",
    "invariant": "policies.representations.invariant:Invariant",
}


def make(name: str, **parameters: Any):
    """The representation called `name`, with its parameters; unknown names raise UserError."""
    if name not in REPRESENTATIONS:
        raise UserError(f"unknown representation {name!r}; known: {', '.join(REPRESENTATIONS)}")
    module, cls = REPRESENTATIONS[name].split(":")
    return getattr(__import__(module, fromlist=[cls]), cls)(**parameters)
