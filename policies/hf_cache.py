"""The cache of a Hugging Face model in the way of our own: later calls may bring the first rows only."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class _Layer(DynamicLayer):
    """Keys and values (B, heads, T, head size) in buffers that double; later calls may bring the first rows only."""

    length = 0

    def get_seq_length(self) -> int:
        return self.length

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
               ) -> tuple[torch.Tensor, torch.Tensor]:
        b, end = len(key_states), self.length + key_states.shape[2]
        self.keys = self._with_room(self.keys, key_states, end)
        self.values = self._with_room(self.values, value_states, end)
        self.keys[:b, :, self.length : end] = key_states
        self.values[:b, :, self.length : end] = value_states
        self.length, self.is_initialized = end, True
        return self.keys[:b, :, :end], self.values[:b, :, :end]

    def _with_room(self, buffer: torch.Tensor | None, new: torch.Tensor, end: int) -> torch.Tensor:
        if buffer is not None and end <= buffer.shape[2]:
            return buffer
        rows, heads, _, size = new.shape if buffer is None else buffer.shape
        larger = new.new_empty(rows, heads, 2 * end, size)
        if buffer is not None:
            larger[:, :, : self.length] = buffer[:, :, : self.length]
        return larger


class HFCache(Cache):
    """Keys and values of all layers, and which of the tokens so far may be seen: (B, T) bool."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_Layer)
        self.seen: torch.Tensor | None = None

    def narrow(self, rows: torch.Tensor) -> None:
        """Keep these rows (b,)."""
        assert self.seen is not None
        self.seen = self.seen[rows]
        for layer in self.layers:
            assert isinstance(layer, _Layer) and layer.keys is not None and layer.values is not None
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]

    def extend(self, seen: torch.Tensor) -> torch.Tensor:
        """Append (b, t) for the first b rows and return those rows so far."""
        self.seen = seen if self.seen is None else torch.cat([self.seen[: len(seen)], seen], 1)
        return self.seen
