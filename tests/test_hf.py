"""A language model of Hugging Face is a policy like any other: inside the grammar, exact, and only adapters learn."""

from __future__ import annotations

import copy
import csv
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import CRYSTALS, random_conditions
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from toy_learning import settings
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from policies.hf import HFPolicy, single_tokens
from policies.model import CrystalPolicy
from policies.prompts import PromptTable
from policies.representations import make
from policies.sampler import sample
from rlgen import checkpoint, pretrain
from rlgen.algorithms.grpo import GRPO
from rlgen.config import load
from rlgen.types import UserError

#: Unequal prompts: from nothing asked to everything.
CONDITIONS = [{}, {"n_atoms": 2}, {"element": "Fe"}, {"space_group": 225, "n_atoms": 4, "element": "O"}]
ROOM = 8192


def byte_level(without: str = "") -> PreTrainedTokenizerFast:
    """GPT-2's kind: bytes, some merged, a blank before a word being a part of it."""
    tokens = [c for c in sorted(pre_tokenizers.ByteLevel.alphabet()) if c not in without]
    merges = [(a, b) for a, b in (("o", "f"), ("Ġ", "of"), ("a", "t"), ("1", "2")) if not {a, b} & set(without)]
    vocabulary = {t: i for i, t in enumerate(["<|endoftext|>", *tokens, *(a + b for a, b in merges)])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def sentence_piece() -> PreTrainedTokenizerFast:
    """LLaMA-2's kind: a blank is ▁, one is put before every text, and what has no token is written as bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *map(chr, range(33, 127)), "▁a"]
    core = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [("▁", "a")], unk_token="<unk>",
                                byte_fallback=True))  # fmt: skip
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def language_model(folder: Path, kind: str = "llama", tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    """A folder as the hub has it: a random model that prefers some tokens, and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = tokenizer or byte_level()
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 128, "num_key_value_heads": 2, "max_position_embeddings": ROOM,
             "initializer_range": 0.15}  # fmt: skip
    model: PreTrainedModel
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    elif kind == "gemma2":
        model = Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=16, final_logit_softcapping=1.0))
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, n_positions=ROOM,
                                           initializer_range=0.15))  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return language_model(tmp_path_factory.mktemp("hub") / "llama")


def policy_of(path: str, trained: bool = True, **settings) -> HFPolicy:
    """trained: with adapters that do something."""
    torch.manual_seed(1)
    policy = HFPolicy.create(make("text", max_atoms=4), path=path, **settings).eval()
    for name, p in policy.named_parameters():
        if trained and "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    return policy


@pytest.fixture
def policy(path):
    return policy_of(path)


def draw(policy, conditions=CONDITIONS, seed: int = 0, **options):
    return sample(policy, conditions, torch.Generator().manual_seed(seed), **options)


def frozen(policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.named_parameters() if "lora_" not in name}


# Probabilities


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_recomputed_ones(tmp_path, kind, temperature):
    policy = policy_of(language_model(tmp_path, kind))
    rollout = draw(policy, random_conditions(12, np.random.default_rng(0), max_atoms=4), temperature=temperature)
    again, _ = policy.token_logprobs(rollout.ids, temperature)
    assert rollout.mask.sum(1).unique().numel() > 1  # rows end at different times
    assert (rollout.logprobs - again)[rollout.mask].abs().max() < 1e-4
    assert (rollout.logprobs[~rollout.mask] == 0).all()
    wrong, _ = policy.token_logprobs(rollout.ids, temperature * 1.2)
    assert (rollout.logprobs - wrong)[rollout.mask].abs().max() > 0.1


def alone(policy, row: list[int], position: int) -> torch.Tensor:
    """Log-probabilities (V,) of the token at a position by the plain model on what comes before, without padding."""
    model, tokenizer, rep = policy._base, policy.tokenizer, policy.representation
    embed = model.get_input_embeddings()
    known = single_tokens(tokenizer, list(rep.characters))
    vectors = []
    for token in row[:position]:
        text = rep.vocabulary[token]
        if text in ("<bos>", "<eos>"):
            pieces = [tokenizer.eos_token_id]
        elif text != "<pad>":
            pieces = [known[text]] if text in known else tokenizer(f"0{text}").input_ids[1:]
        else:
            continue
        vectors.append(embed(torch.tensor(pieces)).mean(0))
    logits = model(inputs_embeds=torch.stack(vectors)[None]).logits[0, -1]
    legal = rep.masks(torch.tensor([row[:position]]))[0, -1]
    chosen = torch.full((len(rep.vocabulary),), -torch.inf)
    for token in legal.nonzero()[:, 0].tolist():
        text = rep.vocabulary[token]
        chosen[token] = logits[tokenizer.eos_token_id if text == "<eos>" else known[text]]
    return chosen.log_softmax(0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_unequal_prompts_give_what_each_gives_alone(tmp_path, kind):
    policy = policy_of(language_model(tmp_path, kind))
    rollout = draw(policy)
    p = policy.representation.prompt_length
    assert (rollout.ids[:, :p] == policy.representation.pad).sum(1).unique().numel() > 2
    together = policy(rollout.ids).logits.log_softmax(-1)
    for ids, logp, mask, found in zip(rollout.ids.tolist(), rollout.logprobs, rollout.mask, together, strict=True):
        length = p + int(mask.sum())
        for position in (p, p + 1, p + 5, length - 1):
            expected = alone(policy, ids, position)
            assert torch.allclose(found[position - 1].exp(), expected.exp(), atol=1e-5)
            assert float(logp[position - p]) == pytest.approx(float(expected[ids[position]]), abs=1e-4)


@torch.no_grad()
def test_guided_logprobs_equal_recomputed_ones(tmp_path):
    density = {"density": {"kind": "linear", "low": -1.0, "high": 20.0}}
    guided = HFPolicy.create(make("text", max_atoms=4, conditions=density), path=language_model(tmp_path)).eval()
    asked = [c | {"density": d} for c, d in zip(CONDITIONS, (5.0, -0.5, None, 12.34), strict=True)]
    plain = sample(guided, asked, torch.Generator().manual_seed(0))
    guided.guide(2.0)
    rollout = sample(guided, asked, torch.Generator().manual_seed(0))
    again, _ = guided.token_logprobs(rollout.ids)
    assert (again - rollout.logprobs).abs()[rollout.mask].max() < 1e-4
    before, _ = guided.token_logprobs(plain.ids)
    away = ((before - plain.logprobs).abs() * plain.mask).amax(1)
    assert away[2] < 1e-4 < 0.01 < away[[0, 1, 3]].min()  # who asks for no property is not guided


def test_the_loss_is_of_the_answer_alone(policy):
    rollout = draw(policy)
    p = policy.representation.prompt_length
    labels = rollout.ids.masked_fill(rollout.ids == policy.representation.pad, -100)
    labels[:, :p] = -100
    loss = policy(rollout.ids, labels=labels).loss
    assert float(loss.detach()) == pytest.approx(-float(rollout.logprobs[rollout.mask].mean()), abs=1e-4)


# Learning


def test_pretraining_lowers_the_loss_and_changes_adapters_alone(path, tmp_path):
    with (tmp_path / "crystals.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["material_id", "cif"])
        small = {name: s for name, s in CRYSTALS.items() if len(s) <= 8}
        for i, (name, s) in enumerate([*small.items()] * 3):
            writer.writerow([f"{name} {i}", s.copy().scale_lattice(s.volume * (1 + 0.02 * i)).to(fmt="cif")])
    handler, threads = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    given = {"policy": "hf", "policy.path": path, "policy.lora_rank": 4, "output": tmp_path / "run", "steps": 12,
             "data": tmp_path / "crystals.csv", "batch": 8, "warmup": 0, "learning_rate": 2e-2, "ema": 0.5,
             "sample_every": 0, "evaluate_every": 12, "checkpoint_every": 6, "device": "cpu", "precision": "fp32",
             "policy.representation_parameters.max_atoms": 8}  # fmt: skip
    pretrain.run(load("pretrain", [f"{key}={value}" for key, value in given.items()]))
    signal.signal(signal.SIGINT, handler)
    torch.set_num_threads(threads)
    losses = [json.loads(line)["pretrain/loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.2
    learnt, prompts = CrystalPolicy.load(str(tmp_path / "run/policy"))
    assert isinstance(learnt, HFPolicy) and len(prompts) and learnt.config.lora_rank == 4
    resumed = load("pretrain", ["policy=hf", f"policy.path={path}", "policy.lora_rank=4", "precision=fp32"])
    trainer = pretrain.Trainer(pretrain.build(resumed, learnt.representation), resumed, torch.device("cpu"))
    trainer.load(checkpoint.latest(tmp_path / "run"))
    assert trainer.step == 12 and all(map(torch.equal, trainer.average.parameters(), learnt.parameters()))
    base = AutoModelForCausalLM.from_pretrained(path).state_dict()
    kept = frozen(learnt)
    names = {k: k.replace("model.base_model.model.", "", 1).replace("base_layer.", "") for k in kept}
    assert len(kept) > 15 and all(torch.equal(base[names[k]], v) for k, v in kept.items())
    assert all(p.abs().max() > 0 for name, p in learnt.named_parameters() if "lora_B" in name)
    assert not list((tmp_path / "run").rglob("model.safetensors"))  # the model itself is nowhere
    assert f"policy.path={path}" in (tmp_path / "run/policy/README.md").read_text()
    assert "hidden_size" not in (tmp_path / "run/policy/README.md").read_text()


def test_an_update_of_grpo(path, tmp_path):
    policy = policy_of(path)
    before, adapters = frozen(policy), policy.state_dict()["model.base_model.model.lm_head.weight"].clone()
    learner = GRPO(policy, settings(learning_rate=1e-2, beta=0.1), Accelerator(cpu=True))
    rollout = draw(policy, [c for c in CONDITIONS for _ in range(4)], group=[i // 4 for i in range(16)])
    rewards = rollout.mask.sum(1).numpy() / rollout.mask.shape[1]
    first = learner.update(rollout, rewards, np.random.default_rng(0))
    assert first["policy/clip_fraction"] == 0 and abs(first["policy/kl"]) < 1e-6 and first["policy/grad_norm"] > 0
    second = learner.update(rollout, rewards, np.random.default_rng(1))
    assert second["policy/kl"] > 1e-5  # the reference stayed where it was
    assert all(torch.equal(before[k], v) for k, v in frozen(policy).items())
    assert torch.equal(adapters, policy.state_dict()["model.base_model.model.lm_head.weight"])
    learner.save(tmp_path)
    moved, _ = policy.token_logprobs(rollout.ids)
    other = policy_of(path, trained=False)
    again = GRPO(other, settings(learning_rate=1e-2, beta=0.1), Accelerator(cpu=True))
    again.load(tmp_path)
    assert torch.equal(other.token_logprobs(rollout.ids)[0], moved)


def test_an_adapter_of_ours_is_refused(path):
    with pytest.raises(UserError, match="adapters of its own"):
        policy_of(path).adapt(32)


def test_all_weights_can_be_trained(path, tmp_path):
    policy = policy_of(path, lora_rank=0)
    before = frozen(policy)
    learner = GRPO(policy, settings(learning_rate=1e-2, beta=0.1), Accelerator(cpu=True))
    rollout = draw(policy, CONDITIONS * 2, group=[i % 4 for i in range(8)])
    learner.update(rollout, rollout.mask.sum(1).double().numpy(), np.random.default_rng(0))
    assert all(not torch.equal(before[k], v) for k, v in frozen(policy).items())
    reference, _ = learner.reference.token_logprobs(rollout.ids)
    assert torch.allclose(reference[rollout.mask], rollout.logprobs[rollout.mask], atol=1e-4)
    assert_kept(policy, tmp_path)


# Checkpoints


def assert_kept(policy: HFPolicy, folder: Path) -> CrystalPolicy:
    """It comes back from a folder as it was."""
    policy.save_pretrained(folder)
    PromptTable.of([225], [[11, 17]]).save(folder)
    found, _ = CrystalPolicy.load(str(folder))
    assert isinstance(found, HFPolicy) and not found.training
    rollout = draw(policy)
    assert torch.equal(found.token_logprobs(rollout.ids)[0], policy.token_logprobs(rollout.ids)[0])
    assert {n for n, p in found.named_parameters() if p.requires_grad} == {
        n for n, p in policy.named_parameters() if p.requires_grad}  # fmt: skip
    return found


def test_a_policy_comes_back_from_its_folder(policy, path, tmp_path):
    found = assert_kept(policy, tmp_path)
    written = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert written < Path(path, "model.safetensors").stat().st_size
    assert_kept(found, tmp_path / "again")


def test_peft_reads_the_adapters_too(policy, path, tmp_path):
    from peft import PeftModel

    policy.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), str(tmp_path)).eval()
    ids = torch.arange(20)[None]
    assert torch.allclose(plain(ids).logits, policy._base(ids).logits, atol=1e-5)


def test_copies_share_what_is_frozen_and_nothing_else(policy):
    twin = copy.deepcopy(policy).requires_grad_(False)
    again = copy.deepcopy(twin)
    for (name, one), two, three in zip(
        policy.named_parameters(), twin.parameters(), again.parameters(), strict=True
    ):
        assert (one is two) == (two is three) == ("lora_" not in name), name
        assert torch.equal(one, two) and (one.requires_grad == ("lora_" in name))


def test_a_checkpoint_whose_model_is_gone_or_another(path, tmp_path):
    policy_of(path).save_pretrained(tmp_path / "policy")
    stored = json.loads((tmp_path / "policy/config.json").read_text())
    for where, says in ((str(tmp_path / "gone"), "no causal language model"),
                        (language_model(tmp_path / "gpt2", "gpt2"), "adapters are for another model")):  # fmt: skip
        (tmp_path / "policy/config.json").write_text(json.dumps(stored | {"path": where}))
        with pytest.raises(UserError, match=says):
            HFPolicy.from_pretrained(tmp_path / "policy")


# Tokenizers


@pytest.mark.parametrize("tokenizer", [byte_level(), sentence_piece()], ids=["byte level", "sentence piece"])
def test_every_character_has_its_token(tokenizer):
    characters = [" ", "\n", *map(chr, range(33, 127))]
    found = single_tokens(tokenizer, characters)
    assert found.keys() == set(characters) and len(set(found.values())) == len(characters)
    names = tokenizer.convert_ids_to_tokens([found[" "], found["\n"], found["a"], found["0"]])
    assert names in (["Ġ", "Ċ", "a", "0"], ["▁", "<0x0A>", "a", "0"])
    text = "0.5 0.25\nNa 1"
    assert tokenizer.decode([found[c] for c in text]) == text


def test_a_model_with_a_sentence_piece_tokenizer(tmp_path):
    policy = policy_of(language_model(tmp_path, tokenizer=sentence_piece()))
    rollout = draw(policy)
    again, _ = policy.token_logprobs(rollout.ids)
    assert (rollout.logprobs - again)[rollout.mask].abs().max() < 1e-4


@pytest.mark.parametrize(("without", "named"), [("7", "'7'"), ("ĊF", r"'\\n' 'F'|'F' '\\n'")])
def test_a_character_without_a_token_is_named(tmp_path, without, named):
    with pytest.raises(UserError, match=f"no token of its own for ({named}), which"):
        policy_of(language_model(tmp_path, tokenizer=byte_level(without)))


def test_other_mistakes_are_named(path, tmp_path):
    with pytest.raises(UserError, match="nowhere: no causal language model"):
        policy_of(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="dtype='int8'; known: auto, float32"):
        policy_of(path, dtype="int8")
    with pytest.raises(UserError, match="'text', not 'atoms'"):
        HFPolicy.create(make("atoms"), path=path)
    with pytest.raises(UserError, match="Gemma2ForCausalLM is not linear"):
        policy_of(language_model(tmp_path / "gemma2", "gemma2"))
    with pytest.raises(UserError, match="reads at most 64 tokens"):
        short = LlamaForCausalLM.from_pretrained(path)
        short.config.max_position_embeddings = 64
        short.save_pretrained(tmp_path / "short")
        byte_level().save_pretrained(tmp_path / "short")
        policy_of(str(tmp_path / "short"))
    with pytest.raises(UserError, match=r"policy\.path must be given"):
        load("pretrain", ["policy=hf"])
    assert load("pretrain", ["policy=hf", "policy.path=x"]).policy.representation == "text"


def test_weights_in_bfloat16(path):
    policy = policy_of(path, dtype="bfloat16")
    assert {p.dtype for name, p in policy.named_parameters() if "lora_" not in name} == {torch.bfloat16}
    rollout = draw(policy)
    again, _ = policy.token_logprobs(rollout.ids)
    assert again.dtype == torch.float32 and (rollout.logprobs - again)[rollout.mask].abs().mean() < 0.05
