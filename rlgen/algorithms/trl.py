"""The same policy, rollouts and rewards under TRL's GRPOTrainer, for its variants; in one process.

TRL scores tokens through the model's head alone, which would leave the grammar out of its log-probabilities, so those
are overridden, for the reference too; our sampler and rewards come in as `rollout_func` and a reward function.
"""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from policies.model import CrystalPolicy
from rlgen.collapse import Guard
from rlgen.config import device_of, plain
from rlgen.experience import Collector, Experience
from rlgen.progress import describe, log_step, progress_bar
from rlgen.tracking import Run
from rlgen.types import UserError

#: TRL's names of what we log under ours.
_NAMES = {"loss": "loss/policy", "kl": "policy/kl", "entropy": "policy/entropy", "grad_norm": "policy/grad_norm",
          "clip_ratio/region_mean": "policy/clip_fraction"}


def tokenizer(policy: CrystalPolicy) -> PreTrainedTokenizerFast:
    """The representation's vocabulary as a tokenizer, which TRL asks for; nothing is ever tokenised with it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    vocabulary = {token: i for i, token in enumerate(policy.representation.vocabulary)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<pad>")),
                                   pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def arguments(config: Any, policy: CrystalPolicy) -> Any:
    """GRPOConfig that does what our own loop does, then the user's `algorithm.trl` options on top."""
    from trl import GRPOConfig

    c = config.algorithm
    settings: dict[str, Any] = {
        "output_dir": str(Path(config.output) / "trl"), "max_steps": config.steps, "seed": config.seed,
        "per_device_train_batch_size": config.batch, "steps_per_generation": 1, "gradient_accumulation_steps": 1,
        "num_generations": c.group_size, "num_iterations": c.num_iterations, "loss_type": c.loss_type,
        "scale_rewards": c.scale_rewards, "importance_sampling_level": c.importance_sampling_level,
        "epsilon": c.epsilon, "epsilon_high": c.epsilon_high, "temperature": c.temperature,
        "learning_rate": c.learning_rate, "lr_scheduler_type": "constant", "adam_beta2": 0.99, "weight_decay": 0.0,
        "max_grad_norm": c.max_grad_norm, "use_bias_correction_kl": c.use_bias_correction_kl,
        "entropy_coef": c.entropy_coef,
        "max_completion_length": policy.representation.max_length - policy.representation.prompt_length,
        "disable_dropout": True, "gradient_checkpointing": False, "bf16": False, "save_strategy": "no",
        "logging_steps": 1, "report_to": [], "disable_tqdm": True, "remove_unused_columns": False,
        "use_cpu": device_of(config.device).type == "cpu",
    }
    settings |= plain(c.trl)
    if "beta" in settings:
        raise UserError("algorithm.trl.beta: the weight of the KL is algorithm.beta")
    try:
        return GRPOConfig(**settings)
    except TypeError as error:
        raise UserError(f"algorithm.trl: {error}; see the options of TRL's GRPOConfig") from error


def make_trainer(config: Any, policy: CrystalPolicy, collector: Collector, done: Any) -> Any:
    """TRL's trainer around our policy, collector and reference; `done(step, experience, stats)` is told each step, and
    whether to stop is what it answers."""
    from datasets import Dataset
    from trl import GRPOTrainer

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    current: dict[str, Any] = {}

    class Trainer(GRPOTrainer):
        def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *_, **__):
            logprobs, entropy = self.accelerator.unwrap_model(model).token_logprobs(
                input_ids, self.temperature, train_entropy=self._entropy_bonus_enabled)
            return logprobs, entropy, None

    def rollout(prompts: list, trainer: Any) -> dict[str, list]:
        model = trainer.accelerator.unwrap_model(trainer.model)
        started = time.monotonic()
        drawn = collector.draw(model, trainer.state.global_step + 1)
        sampled = time.monotonic() - started
        current["experience"] = collector.score(model, drawn)
        current["experience"].scalars["time/sample"] = sampled
        p = policy.representation.prompt_length
        lengths = drawn.mask.sum(1).tolist()
        return {"prompt_ids": drawn.ids[:, :p].tolist(),
                "completion_ids": [row[:n] for row, n in zip(drawn.ids[:, p:].tolist(), lengths, strict=True)],
                "logprobs": [row[:n] for row, n in zip(drawn.logprobs.tolist(), lengths, strict=True)],
                "earned": current["experience"].rewards.tolist()}

    def reward(earned: list[float | None], **_: Any) -> list[float | None]:
        return earned

    class Tell(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                experience: Experience = current["experience"]
                stats = {ours: logs[its] for its, ours in _NAMES.items() if its in logs}
                control.should_training_stop |= bool(done(state.global_step, experience, stats))

    policy.generation_config = GenerationConfig(eos_token_id=policy.representation.eos)
    trainer = Trainer(model=policy, reward_funcs=[reward], args=arguments(config, policy), callbacks=[Tell()],
                      train_dataset=Dataset.from_dict({"prompt": [""] * config.batch}),
                      processing_class=tokenizer(policy), rollout_func=rollout)
    trainer.remove_callback(PrinterCallback)
    # TRL would reload the reference from the hub by name: ours is a copy of the policy as it is now.
    trainer.beta = config.algorithm.beta
    trainer.ref_model = copy.deepcopy(policy).eval().requires_grad_(False).to(trainer.accelerator.device)
    return trainer


def train(config: Any, policy: CrystalPolicy, collector: Collector, log: Run, last: Path | None) -> CrystalPolicy:
    """`config.steps` steps of TRL's GRPO, logged like our own loop's."""
    if last is not None:
        raise UserError("algorithm=trl runs cannot be resumed (docs/runs.md says why); algorithm=grpo runs can")
    if config.replay.fraction:
        raise UserError("replay.fraction: TRL has no importance ratios to older policies; algorithm=grpo has")
    guard = Guard(config.collapse)
    with progress_bar() as progress:
        task = progress.add_task("starting", total=config.steps)

        def done(step: int, experience: Experience, stats: dict[str, float]) -> bool:
            why = guard.observe(step, experience.scalars | stats)
            stops = bool(why) and config.collapse.action != "ignore"
            if why:
                log.note(step, f"collapse: {why}; " + ("the run stops, with the policy as it is" if stops else
                                                       "nothing is done about it (collapse.action=ignore)"))
            log_step(log, step, experience, stats | {"collapse/alarms": float(guard.alarms)})
            progress.update(task, completed=step, description=describe(experience))
            return stops

        trainer = make_trainer(config, policy, collector, done)
        trainer.train()
    trained = trainer.accelerator.unwrap_model(trainer.model)
    with torch.no_grad():
        return trained.eval()
