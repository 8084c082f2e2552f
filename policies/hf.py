"""A Hugging Face causal language model as the policy: its own tokenizer and weights, and adapters that learn (LoRA).

The policy's vocabulary stays that of the representation, so that the grammar, rollouts, ratios and the KL are those of
any policy. A token is read as the mean of the model's embeddings of the pieces of its text; the logit of a character is
the model's own, of the one token that the tokenizer has for it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from policies.hf_cache import HFCache
from policies.model import CrystalPolicy, PolicyConfig
from rlgen.types import UserError

ADAPTERS = "adapter_model.safetensors"  # PEFT's own names: PeftModel.from_pretrained reads the folder too
FULL = "model"
DTYPES = ("auto", "float32", "bfloat16", "float16")


class HFPolicyConfig(PolicyConfig):
    """What a checkpoint needs to be built again: the model it starts from, its adapters, and the representation."""

    model_type = "rlgen-hf-policy"

    def __init__(self, path: str = "", dtype_of_base: str = "auto", lora_rank: int = 8, lora_alpha: float = 32.0,
                 lora_dropout: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        del self.hidden_size, self.layers, self.heads, self.intermediate_size, self.dropout  # the model has its own
        self.path = path
        self.dtype_of_base = dtype_of_base
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.lora_dropout = lora_dropout


class HFPolicy(CrystalPolicy):
    """A causal language model that writes crystals in a representation made of characters.

    Prompts have a fixed width; their padding is moved to the left, where the model does not see it and no position is
    counted for it, so that a prompt gives what it gives alone. For models whose cache is keys and values (not for
    recurrent ones). Frozen weights are shared by all copies (`deepcopy`) of a policy.
    """

    config_class = HFPolicyConfig
    config: HFPolicyConfig
    pieces: torch.Tensor
    share: torch.Tensor
    answer: torch.Tensor
    answer_pieces: torch.Tensor

    @classmethod
    def create(cls, representation: Any, **settings: Any) -> HFPolicy:
        """The model at `path` (a folder or a name on the hub) with adapters that do nothing yet; `settings` are those
        of `ArchitectureConfig`. UserError for what is no causal language model or lacks a character."""
        path = str(settings.pop("path"))
        # Checkpoints name the model; a relative path would be another one where they are loaded.
        path = str(Path(path).resolve()) if Path(path).is_dir() else path
        created = super().create(representation, path=path, dtype_of_base=settings.pop("dtype", "auto"), **settings)
        assert isinstance(created, HFPolicy)
        return created

    def _build(self, config: Any) -> None:
        if not hasattr(self.representation, "characters"):
            raise UserError(f"policy.path={config.path}: language models write the representation 'text', not "
                            f"{config.representation!r}")
        self.tokenizer, base = _read(config.path, config.dtype_of_base)
        room = getattr(base.config, "max_position_embeddings", None)
        if room is not None and room < self.representation.max_length:
            raise UserError(f"policy.path={config.path} reads at most {room} tokens, but crystals take up to "
                            f"{self.representation.max_length}")
        self._map_tokens()
        self.model: nn.Module = base
        self._check_head()
        if config.lora_rank:
            self.model = get_peft_model(base, LoraConfig(
                task_type="CAUSAL_LM", target_modules="all-linear", r=config.lora_rank, lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout))

    def _map_tokens(self) -> None:
        """Pieces of each token (V, K) with their shares, and the tokens of answers (A,) with their single pieces."""
        rep, tokenizer = self.representation, self.tokenizer
        if tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer of policy.path={self.config.path} has no end-of-sequence token")
        bos = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        known = single_tokens(tokenizer, sorted({*rep.characters, *(t for t in rep.vocabulary if len(t) == 1)}))
        missing = [c for c in rep.characters if c not in known]
        if missing:
            raise UserError(f"policy.path={self.config.path}: the tokenizer has no token of its own for "
                            f"{' '.join(map(repr, missing))}, which crystals are written with")
        special = {"<pad>": [tokenizer.eos_token_id], "<bos>": [bos], "<eos>": [tokenizer.eos_token_id]}
        single = {c: [token] for c, token in known.items()}
        found = [special.get(text) or single.get(text) or _pieces(tokenizer, text) for text in rep.vocabulary]
        widest = max(map(len, found))
        pieces = torch.tensor([ids + [bos] * (widest - len(ids)) for ids in found])
        counts = torch.tensor([[len(ids)] for ids in found])
        answer = torch.tensor([rep.eos, *(rep.first["character"] + i for i in range(len(rep.characters)))])
        for name, tensor in (("pieces", pieces), ("share", (torch.arange(widest) < counts) / counts),
                             ("answer", answer), ("answer_pieces", pieces[answer, 0])):
            self.register_buffer(name, tensor, persistent=False)

    @torch.no_grad()
    def _check_head(self) -> None:
        """UserError where the model's logits are not a linear map of its last hidden states, which `head` takes."""
        ids = self.answer_pieces[None]
        logits = self._base(ids).logits[..., self.answer_pieces].float()
        ours = self._logits(self._base.base_model(ids).last_hidden_state)
        if not torch.allclose(logits, ours, rtol=2e-2, atol=2e-2):  # bfloat16 is this coarse
            raise UserError(f"policy.path={self.config.path}: the output layer of {type(self._base).__name__} is not "
                            "linear, which is not supported")

    @property
    def _base(self) -> PreTrainedModel:
        """The language model, with its adapters if it has any."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model  # type: ignore[return-value]

    def get_input_embeddings(self) -> nn.Embedding:
        return self._base.get_input_embeddings()  # type: ignore[return-value]

    def new_cache(self, batch: int) -> HFCache:
        return HFCache()

    def trunk(self, input_ids: torch.Tensor, cache: HFCache | None = None) -> torch.Tensor:  # type: ignore[override]
        """Last hidden states (B, T, D) of new tokens (B, T), of which the first call for a cache has the prompt.

        Those within the prompt are not in its order; its last one is what the answer's first token follows from.
        """
        pad, p = self.representation.pad, self.representation.prompt_length
        if cache is None or cache.seen is None:
            first = (input_ids[:, :p] != pad).int().argsort(dim=1, stable=True)
            input_ids = torch.cat([input_ids[:, :p].gather(1, first), input_ids[:, p:]], 1)
        seen = input_ids != pad
        if cache is not None:
            seen = cache.extend(seen)
        positions = (seen.cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        embedded = self.get_input_embeddings()(self.pieces)
        table = (embedded * self.share[..., None].to(embedded.dtype)).sum(1)
        return self._base.base_model(inputs_embeds=F.embedding(input_ids, table), attention_mask=seen.long(),
                                     position_ids=positions, past_key_values=cache,
                                     use_cache=cache is not None).last_hidden_state

    def adapt(self, hidden: int) -> None:
        raise UserError("algorithm.adapter: a language model has adapters of its own (policy.lora_rank); "
                        "algorithm.adapter=0 learns those")

    def logits(self, hidden: torch.Tensor, tokens: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        logits = hidden.new_zeros(*hidden.shape[:-1], self.config.vocab_size, dtype=torch.float32)
        # Only characters and the end are ever legal in answers, and padding, alone, after them.
        logits[..., self.answer] = self._logits(hidden)
        return logits[..., tokens]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, A) float32 of the answer's tokens for hidden states (…, D)."""
        output: Any = self._base.get_output_embeddings()
        bias = getattr(output, "bias", None)
        return F.linear(hidden, output.weight[self.answer_pieces],
                        None if bias is None else bias[self.answer_pieces]).float()

    def save_pretrained(self, save_directory: Any, *_: Any, **__: Any) -> None:  # type: ignore[override]
        """The adapters and the name of the model that they are for; without adapters, the whole model."""
        folder = Path(save_directory)
        self.config.save_pretrained(folder)
        if isinstance(self.model, PeftModel):
            self.model.peft_config["default"].save_pretrained(str(folder))
            weights = get_peft_model_state_dict(self.model, save_embedding_layers=False)
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / ADAPTERS)
        else:
            self._base.save_pretrained(folder / FULL)
            self.tokenizer.save_pretrained(folder / FULL)

    @classmethod
    def from_pretrained(cls, folder: Any, *_: Any, **__: Any) -> HFPolicy:  # type: ignore[override]
        """What `save_pretrained` wrote. UserError where the model that adapters are for is not to be had."""
        config = HFPolicyConfig.from_pretrained(folder)
        if not config.lora_rank:
            config.path = str(Path(folder) / FULL)
        policy = cls(config)
        if isinstance(policy.model, PeftModel):
            weights = load_file(Path(folder) / ADAPTERS)
            expected = get_peft_model_state_dict(policy.model, save_embedding_layers=False)
            if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in expected.items()}:
                raise UserError(f"{folder}: its adapters are for another model than {config.path}")
            set_peft_model_state_dict(policy.model, weights)
        return policy.eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> HFPolicy:
        if self.config.lora_rank:
            memo.update({id(p): p for name, p in self.named_parameters() if "lora_" not in name})
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


def _read(path: str, dtype: str) -> tuple[Any, PreTrainedModel]:
    """Tokenizer and model; UserError where there is none."""
    if dtype not in DTYPES:
        raise UserError(f"policy.dtype={dtype!r}; known: {', '.join(DTYPES)}")
    try:
        return AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"policy.path={path}: no causal language model with a tokenizer can be read there: "
                        f"{str(error).partition(chr(10))[0]}") from error


def _pieces(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text within a longer one: some tokenizers put a blank before the first."""
    before, whole = (tokenizer(t, add_special_tokens=False).input_ids for t in ("0", f"0{text}"))
    return whole[len(before) :]


def single_tokens(tokenizer: Any, characters: list[str]) -> dict[str, int]:
    """The token that stands for a character between others, for the characters that have one.

    Tokenizers write blanks and line ends as other characters or as bytes, and some drop a blank at the start: what
    counts is that "0", the token and "0" are read back as the character between two zeros.
    """
    vocabulary, found = tokenizer.get_vocab(), {}
    zero = vocabulary.get("0")
    for c in characters if zero is not None else []:
        alone = tokenizer(c, add_special_tokens=False).input_ids
        written = (c, {" ": "Ġ", "\n": "Ċ"}.get(c, c), "▁" if c == " " else c, f"<0x{ord(c):02X}>")
        for token in [vocabulary[w] for w in written if w in vocabulary] + alone[:1] * (len(alone) == 1):
            if tokenizer.decode([zero, token, zero], clean_up_tokenization_spaces=False) == f"0{c}0":
                found[c] = token
                break
    return found
