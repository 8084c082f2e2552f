"""The policy: a LLaMA-style causal transformer whose forward pass contains the grammar of its representation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import logging as transformers_logging

from policies.prompts import PromptTable
from policies.representations import make
from rlgen.conditions import Transform
from rlgen.types import Condition, UserError

transformers_logging.disable_progress_bar()  # a bar for each of a hundred small files would bury our own

SHIPPED = Path(__file__).parent / "shipped"
#: What fine-tuning has put behind the shipped policy's trunk, which it left as it was.
TUNED = SHIPPED / "tuned" / "adapter.safetensors"
ROPE_BASE = 10_000.0
#: Of the Gaussian, in bins, that embeddings of a property's bins are smoothed by.
SMOOTHING = 1.0
#: The same for their beginnings: alike values begin alike, and what is learnt of one holds for its neighbours.
BEGINNING = 8.0


class PolicyConfig(PretrainedConfig):
    """What a checkpoint needs to be built again: sizes, and the representation with the version it was trained on."""

    model_type = "rlgen-policy"

    def __init__(self, hidden_size: int = 128, layers: int = 4, heads: int = 4, intermediate_size: int = 352,
                 dropout: float = 0.0, representation: str = "atoms",
                 representation_parameters: dict[str, Any] | None = None, representation_version: str = "",
                 vocab_size: int = 0, adapter: int = 0, sampling_temperature: float = 1.0, **kwargs: Any):
        self.hidden_size = hidden_size
        self.layers = layers
        self.heads = heads
        self.intermediate_size = intermediate_size
        self.dropout = dropout
        self.representation = representation
        self.representation_parameters = representation_parameters or {}
        self.representation_version = representation_version
        self.vocab_size = vocab_size
        self.adapter = adapter
        self.sampling_temperature = sampling_temperature  # the one that fine-tuning drew at
        kwargs.setdefault("pad_token_id", 0)
        kwargs.setdefault("bos_token_id", 1)
        kwargs.setdefault("eos_token_id", 2)
        super().__init__(**kwargs)


class Cache:
    """Keys and values of the tokens so far, in buffers allocated once: (layers, 2, B, heads, T, head size)."""

    def __init__(self, config: PolicyConfig, batch: int, length: int, like: torch.Tensor):
        shape = (config.layers, 2, batch, config.heads, length, config.hidden_size // config.heads)
        self.buffer = like.new_empty(shape)
        self.length = 0
        #: (B, 2 layers + 1, 1, D) what `Told` made of the prompts, None where there is nothing to tell.
        self.told: torch.Tensor | None = None

    def reserve(self, length: int) -> None:
        """Make room for so many tokens, in steps of twice the room."""
        room = self.buffer.shape[-2]
        while room < length:
            room *= 2
        if room > self.buffer.shape[-2]:
            larger = self.buffer.new_empty(*self.buffer.shape[:-2], room, self.buffer.shape[-1])
            larger[..., : self.length, :] = self.buffer[..., : self.length, :]
            self.buffer = larger

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (b, heads, t, head size) for the first b rows and return all of those rows so far."""
        b, end = len(k), self.length + k.shape[2]
        self.buffer[layer, 0, :b, :, self.length : end] = k
        self.buffer[layer, 1, :b, :, self.length : end] = v
        return self.buffer[layer, 0, :b, :, :end], self.buffer[layer, 1, :b, :, :end]

    def narrow(self, rows: torch.Tensor) -> None:
        """Keep these rows (b,)."""
        self.buffer = self.buffer[:, :, rows]
        if self.told is not None:
            self.told = self.told[rows]


def rope(positions: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (T, size) of rotary position embedding (Su et al., arXiv 2104.09864)."""
    frequency = ROPE_BASE ** (-torch.arange(0, size, 2, device=positions.device, dtype=torch.float32) / size)
    angle = positions[:, None].float() * frequency
    return torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos.to(x.dtype) + torch.cat([-x[..., half:], x[..., :half]], -1) * sin.to(x.dtype)


class Block(nn.Module):
    """Pre-norm attention and SwiGLU feed-forward."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        d, f = config.hidden_size, config.intermediate_size
        self.heads, self.dropout = config.heads, nn.Dropout(config.dropout)
        self.attention_norm, self.mlp_norm = nn.RMSNorm(d, eps=1e-6), nn.RMSNorm(d, eps=1e-6)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.gate_up, self.down = nn.Linear(d, 2 * f, bias=False), nn.Linear(f, d, bias=False)
        for last in (self.out, self.down):
            last.std = 0.02 / (2 * config.layers) ** 0.5  # type: ignore[assignment]  # for _init_weights

    def forward(self, x: torch.Tensor, told: tuple[torch.Tensor, torch.Tensor] | None, cos: torch.Tensor,
                sin: torch.Tensor, cache: Cache | None, layer: int) -> torch.Tensor:
        """(B, T, D) of x (B, T, D). told: what is added to the input of each half, (B, 1, D), if anything."""
        b, t, d = x.shape
        normed = self.attention_norm(x) if told is None else self.attention_norm(x) + told[0]
        q, k, v = self.qkv(normed).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        # With a cache either the whole prompt is new (causal) or a single token is (which sees everything).
        if x.device.type == "cpu":
            # The backward pass of attention takes three times as long there in bfloat16 as in float32.
            with torch.autocast("cpu", enabled=False):
                attended = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=t > 1)
        else:
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1)
        x = x + self.dropout(self.out(attended.to(x.dtype).transpose(1, 2).reshape(b, t, d)))
        normed = self.mlp_norm(x) if told is None else self.mlp_norm(x) + told[1]
        gate, up = self.gate_up(normed).chunk(2, -1)
        return x + self.dropout(self.down(F.silu(gate) * up))


class Told(nn.Module):
    """What the properties of a prompt add to every token, after each of the normalisations.

    Attention to the prompt's tokens alone learns to heed them slowly. Added to every token they shift what comes next
    from the first step on, as class labels do in diffusion transformers (Peebles and Xie, arXiv 2212.09748, adaLN-Zero,
    of which this is the shift): last weights are 0 at first, so that a policy is the same before it has learnt any.
    """

    def __init__(self, config: PolicyConfig):
        super().__init__()
        d = config.hidden_size
        self.norm, self.into = nn.RMSNorm(d, eps=1e-6), nn.Linear(d, d, bias=False)
        self.out = nn.Linear(d, (2 * config.layers + 1) * d, bias=False)
        self.into.std, self.out.std = d**-0.5, 0.0  # type: ignore[assignment]  # for _init_weights

    def forward(self, told: torch.Tensor) -> torch.Tensor:
        """(B, 2 layers + 1, 1, D) of the embeddings (B, N, D) of N properties."""
        out: torch.Tensor = self.out(F.silu(self.into(self.norm(told.sum(1)))))
        return out.unflatten(-1, (-1, 1, told.shape[-1]))


class Adapter(nn.Module):
    """What may be learnt behind a trunk that stays: a hidden state h becomes (1 + a) h + u, with the number a and u of
    a small network of h, 0 at first. By a alone the temperature depends on what was written so far."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.into, self.out = nn.Linear(width, hidden), nn.Linear(hidden, width + 1)
        self.into.std, self.out.std = width**-0.5, 0.0  # type: ignore[assignment]  # for _init_weights

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        change = self.out(F.gelu(self.into(hidden)))
        return hidden + hidden * change[..., :1] + change[..., 1:]


def smoothing(representation: Any, width: float = SMOOTHING) -> torch.Tensor:
    """(N, N) weights that make the embeddings of the N tokens of all properties smooth in the bins of each.

    width: σ of the Gaussian, in bins.

    Rows add up to 1. "Unknown" and categories stay as they are; numeric bins get a Gaussian mean over the bins of
    their property, so that those that few crystals are in learn from their neighbours.
    """
    blocks = []
    for scale in representation.binned.values():
        weights = torch.eye(1 + scale.bins)
        if isinstance(scale, Transform):
            at = torch.arange(scale.bins)
            near = torch.exp(-0.5 * ((at[:, None] - at) / width) ** 2)
            weights[1:, 1:] = near / near.sum(1, keepdim=True)
        blocks.append(weights)
    return torch.block_diag(*blocks)


class CrystalPolicy(PreTrainedModel):
    """p(next token | tokens so far) over the tokens that the grammar allows, and only those.

    Sequences are right-padded and start with the prompt of a condition; all of sampling, ratios, the KL to the
    reference and the pretraining loss read their probabilities from `forward`.
    """

    config_class: Any = PolicyConfig
    config: PolicyConfig
    base_model_prefix = "policy"
    _no_split_modules: ClassVar[list[str]] = ["Block"]  # type: ignore[misc]
    supports_gradient_checkpointing = False
    #: Weight of classifier-free guidance by the properties that prompts tell; 1: none. See `guide`.
    guidance: float = 1.0

    def __init__(self, config: PolicyConfig):
        super().__init__(config)
        self.representation = make(config.representation, **config.representation_parameters)
        if config.representation_version != self.representation.version:
            raise UserError(
                f"this policy was trained on version {config.representation_version!r} of the representation "
                f"{config.representation!r}, but this rlgen writes version {self.representation.version!r}; "
                "use the rlgen it was trained with, or pretrain anew"
            )
        self._build(config)

    def _build(self, config: Any) -> None:
        """The layers, randomly initialised."""
        if config.hidden_size % (2 * config.heads):
            raise UserError(f"hidden_size={config.hidden_size} must be a multiple of twice heads={config.heads}")
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.told = Told(config) if self.representation.binned else None
        self.adapter = Adapter(config.hidden_size, config.adapter) if config.adapter else None
        #: Made when it is needed: models are built on devices that hold no numbers.
        self._smoothing: torch.Tensor | None = None
        self.post_init()

    @classmethod
    def create(cls, representation: Any, **sizes: Any) -> CrystalPolicy:
        """A randomly initialised policy for a representation; `sizes` are those of its configuration's class."""
        policy = cls(cls.config_class(**sizes, representation=representation.name,
                                      representation_parameters=representation.parameters,
                                      representation_version=representation.version,
                                      vocab_size=len(representation.vocabulary)))
        if representation.binned:
            curve = smoothing(representation, BEGINNING)
            told = policy.embed.weight.data[-len(curve) :]
            told.copy_(curve / curve.norm(dim=1, keepdim=True) @ told)  # as large as those of other tokens
        return policy

    def asked_for(self, representation: Any) -> CrystalPolicy:
        """This policy with other properties to be asked for: its weights, and new embeddings of the properties' tokens.

        UserError if `representation` writes crystals in another way, or this is a language model.
        """
        mine = self.representation
        alike = (mine.layout, mine.written) == (representation.layout, representation.written)
        if type(self) is not CrystalPolicy or not alike:
            raise UserError("policy.start: cannot learn on from a language model, nor write in another way than it "
                            f"does, {mine.name} with {mine.written}")
        sizes = {name: getattr(self.config, name)
                 for name in ("hidden_size", "layers", "heads", "intermediate_size", "dropout", "adapter")}
        policy, weights = CrystalPolicy.create(representation, **sizes), self.state_dict()
        # A bin of another scale means another value: its embedding begins anew.
        other = {token for name, scale in mine.conditions.items() if representation.conditions.get(name) != scale
                 for token in scale.token_names(name)}
        place = {token: i for i, token in enumerate(mine.vocabulary) if token not in other}
        kept = [(new, place[token]) for new, token in enumerate(representation.vocabulary) if token in place]
        embeddings = policy.embed.weight.detach().clone()
        into, of = torch.tensor(kept).T
        embeddings[into] = weights["embed.weight"][of]
        policy.load_state_dict(policy.state_dict() | weights | {"embed.weight": embeddings})
        return policy

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=getattr(module, "std", 0.02))
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def adapt(self, hidden: int) -> None:
        """Put an adapter of so many units behind the trunk, which changes nothing yet; one that is there stays."""
        if self.adapter is None:
            self.config.adapter = hidden
            self.adapter = Adapter(self.config.hidden_size, hidden).to(self.device)  # type: ignore[arg-type]
            self.adapter.apply(self._init_weights)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.embed = value

    def new_cache(self, batch: int) -> Any:
        """For `hidden`; of the batch that the first call brings, later ones may bring the first rows only."""
        return Cache(self.config, batch if self.guidance == 1.0 else 2 * batch, 64, self.embed.weight)

    def narrow(self, cache: Any, rows: torch.Tensor) -> None:
        """Go on with some rows (b,) of a cache only, in this order."""
        cache.narrow(rows if self.guidance == 1.0 else torch.stack([2 * rows, 2 * rows + 1], 1).flatten())

    def guide(self, weight: float) -> None:
        """From now on draw and measure with logits u + weight (c - u) of the legal tokens: c those under the whole
        prompt, u those where it tells no property (Ho and Salimans, arXiv 2207.12598).

        What the grammar enforces is the same in both. UserError where the policy was trained on no property.
        """
        if weight != 1.0 and not self.representation.conditions:
            raise UserError(f"guidance={weight}: this policy was trained on no property that it could be guided by; "
                            "python -m rlgen.pretrain conditions=density,… trains one")
        self.guidance = float(weight)

    def hidden(self, input_ids: torch.Tensor, cache: Any = None) -> torch.Tensor:
        """Last hidden states (B, T, D) of new tokens (B, T), the first with their prompt; a cache is extended by them.

        With guidance (B, T, 2 D): those with all that is asked, then those without the properties.
        """
        if self.guidance == 1.0:
            return self.trunk(input_ids, cache)
        # With a cache either the whole prompt is new or a single token is.
        begins = input_ids.shape[1] >= self.representation.prompt_length
        free = self.representation.unasked(input_ids) if begins else input_ids
        both = torch.stack([input_ids, free], 1).flatten(0, 1)
        return self.trunk(both, cache).unflatten(0, (-1, 2)).transpose(1, 2).flatten(2)

    def embedded(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) of tokens (B, T), and what `Told` makes of the properties if their prompt is among them.

        Embeddings of the properties are smoothed over their bins.
        """
        x = self.embed(input_ids)
        end = self.representation.prompt_length
        if self.told is None or input_ids.shape[1] < end:
            return x, None
        if self._smoothing is None:
            self._smoothing = smoothing(self.representation).to(x.device)
        begin = end - len(self.representation.binned)
        table = self._smoothing.to(x.device) @ self.embed.weight[-len(self._smoothing) :]
        first = self.config.vocab_size - len(self._smoothing)
        told = F.embedding(input_ids[:, begin:end] - first, table).to(x.dtype)
        return torch.cat([x[:, :begin], told, x[:, end:]], 1), self.told(told)

    def trunk(self, input_ids: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """`hidden` of one prompt a sequence."""
        start = cache.length if cache is not None else 0
        positions = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)
        cos, sin = rope(positions, self.config.hidden_size // self.config.heads)
        x, told = self.embedded(input_ids)
        if cache is not None:
            cache.reserve(start + input_ids.shape[1])
            if told is not None:
                cache.told = told
            told = None if cache.told is None else cache.told[: len(x)]
        for layer, block in enumerate(self.blocks):
            here = None if told is None else (told[:, 2 * layer], told[:, 2 * layer + 1])
            x = block(x, here, cos, sin, cache, layer)
        if cache is not None:
            cache.length += input_ids.shape[1]
        return self.norm(x) if told is None else self.norm(x) + told[:, -1]

    @classmethod
    def load(cls, name: str, representation: str | None = None) -> tuple[CrystalPolicy, PromptTable]:
        """A trained policy and its prompt table: "shipped", "tuned" (the same, fine-tuned), or the folder that
        pretraining or fine-tuning wrote.

        UserError where there is none, or where it writes crystals in another way than the one named.
        """
        folder = SHIPPED if name in ("shipped", "tuned") else Path(name)
        if not (folder / "config.json").exists():
            raise UserError(f"policy={name}: no policy there ({folder / 'config.json'} is missing); give 'shipped', "
                            "'tuned' or the policy/ folder of a run")
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if representation not in (None, stored.get("representation")):
            raise UserError(f"policy={name} writes crystals as {stored.get('representation')}, not {representation}; "
                            f"python -m rlgen.pretrain representation={representation} makes one that does")
        if stored.get("model_type") == "rlgen-hf-policy":
            from policies.hf import HFPolicy

            return HFPolicy.from_pretrained(folder), PromptTable.load(folder)
        # Weights may be kept in half precision; they are computed with in single.
        policy = cls.from_pretrained(folder, dtype=torch.float32)
        if name == "tuned":
            learnt = load_file(TUNED)
            policy.adapt(len(learnt["into.bias"]))
            policy.load_state_dict({f"adapter.{key}": weights for key, weights in learnt.items()}, strict=False)
        return policy, PromptTable.load(folder)

    def head(self, hidden: torch.Tensor, legal: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        """Logits over the legal tokens, guided if so set, -inf elsewhere, divided by the temperature, in float32."""
        if self.guidance == 1.0:
            logits = self.logits(hidden)
        else:
            asked, free = (self.logits(one) for one in hidden.chunk(2, -1))
            logits = free + self.guidance * (asked - free)
        if temperature != 1.0:
            logits = logits / temperature
        return logits.masked_fill(~legal, float("-inf"))

    def logits(self, hidden: torch.Tensor, tokens: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """(…, V) float32 over all tokens, or some, for hidden states (…, D) of `trunk`."""
        adapted = hidden if self.adapter is None else self.adapter(hidden)
        return F.linear(adapted, self.embed.weight[tokens]).float()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None,
                labels: torch.Tensor | None = None, temperature: float = 1.0, *, legal: torch.Tensor | None = None,
                **_: Any) -> CausalLMOutput:
        """Logits (B, T, V), masked after the prompt.

        With labels (B, T; -100 is ignored) also the mean NLL per label (nats). The attention mask is not needed:
        sequences are padded on the right and attention is causal. Who has the grammar's masks of the ids may give them.
        """
        rep = self.representation
        masks = rep.masks(input_ids) if legal is None else legal
        legal = F.pad(masks, (0, 0, rep.prompt_length - 1, 0), value=True)
        logits = self.head(self.hidden(input_ids), legal, temperature)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutput(loss=loss, logits=logits)

    def before_tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Last hidden states (B, T - P, D) that the tokens after the prompt of P tokens are drawn from."""
        return self.hidden(input_ids[:, :-1])[:, self.representation.prompt_length - 1 :]

    def token_logprobs(self, input_ids: torch.Tensor, temperature: float = 1.0,
                       conditions: Sequence[Condition] | None = None, *, legal: torch.Tensor | None = None,
                       hidden: torch.Tensor | None = None, train_entropy: bool = False
                       ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies (nats), both (B, T - P), of the tokens after the prompt of P tokens.

        Conditions (B) are those of the rollout: what they ask of the grammar is part of the distribution. Who has the
        grammar's masks of ids[:, :-1] or the hidden states `before_tokens` already may give them. Entropies have a
        gradient only with `train_entropy`, as it costs memory and time.
        """
        if hidden is None:
            hidden = self.before_tokens(input_ids)
        if legal is None:
            legal = self.representation.masks(input_ids[:, :-1], conditions)
        logp = self.head(hidden, legal, temperature).log_softmax(-1)
        known = logp if train_entropy else logp.detach()
        entropy = -(known.exp() * known.masked_fill(~legal, 0.0)).sum(-1)
        return logp.gather(2, input_ids[:, self.representation.prompt_length :, None])[..., 0], entropy
