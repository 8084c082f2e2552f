"""The settings of every entry point as typed dataclasses, and what their values may be; `configs/` explains them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ArchitectureConfig:
    representation: str = "orbits"
    representation_parameters: dict[str, Any] = field(default_factory=dict)
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    intermediate_size: int = 352
    dropout: float = 0.1
    start: str | None = None
    path: str | None = None
    dtype: str = "auto"
    lora_rank: int = 8
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0


@dataclass
class PretrainConfig:
    """Settings of `python -m rlgen.pretrain`."""

    policy: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    data: str = "mp20"
    hindsight: str | None = None
    limit: int | None = None
    output: str = "runs/pretrain"
    seed: int = 0
    steps: int = 4000
    batch: int = 128
    learning_rate: float = 1.5e-3
    warmup: int = 200
    decay: float = 0.4
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    ema: float = 0.998
    conditions: str = ""
    condition_dropout: float = 0.1
    property_dropout: float = 0.5
    precision: str = "auto"
    threads: int = 0
    workers: int | None = None
    evaluate_every: int = 200
    checkpoint_every: int = 200
    patience: int = 10
    sample_every: int = 400
    samples: int = 256
    resume: str | None = None
    resume_changed: bool = False
    device: str = "auto"


@dataclass
class AlgorithmConfig:
    name: str = "grpo"
    group_size: int = 8
    scale_rewards: str = "none"
    loss_type: str = "dapo"
    importance_sampling_level: str = "token"
    num_iterations: int = 1
    minibatch: int = 128
    learning_rate: float = 2e-4
    epsilon: float = 0.2
    epsilon_high: float = 0.28
    beta: float = 0.02
    beta_by_kind: dict[str, float] = field(default_factory=dict)
    use_bias_correction_kl: bool = False
    target_kl: float | None = None
    entropy_coef: float = 0.0
    entropy_by_kind: dict[str, float] = field(default_factory=dict)
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    gamma: float = 1.0
    lam: float = 0.95
    cliprange_value: float = 0.2
    value_learning_rate: float = 1e-3
    past: float = 1.0
    adapter: int = 0
    trl: dict[str, Any] = field(default_factory=dict)


@dataclass
class RewardConfig:
    expression: str = "novelty+stability"
    validity: dict[str, Any] = field(default_factory=dict)
    novelty: dict[str, Any] = field(default_factory=dict)
    uniqueness: dict[str, Any] = field(default_factory=dict)
    spread: dict[str, Any] = field(default_factory=dict)
    stability: dict[str, Any] = field(default_factory=dict)
    formation: dict[str, Any] = field(default_factory=dict)
    condition: dict[str, Any] = field(default_factory=dict)


@dataclass
class PromptsConfig:
    power: float = 1.0
    diversity: float = 1.0
    space_group: float = 1.0
    n_atoms: float = 1.0
    element: float = 1.0
    properties: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    file: str | None = None


@dataclass
class BucketConfig:
    shape: str = "none"
    bucket: int = 10


@dataclass
class PrototypeConfig(BucketConfig):
    bucket: int = 25
    quota: float = 1.0


@dataclass
class MemoryConfig:
    min_score: float = 0.0
    crystal: BucketConfig = field(default_factory=lambda: BucketConfig("inverse", 1))
    formula: BucketConfig = field(default_factory=BucketConfig)
    prototype: PrototypeConfig = field(default_factory=PrototypeConfig)


@dataclass
class CollapseConfig:
    action: str = "rollback"
    window: int = 8
    rollbacks: int = 2
    slower: float = 0.5
    fall: dict[str, Any] = field(default_factory=dict)
    rise: dict[str, Any] = field(default_factory=dict)
    above: dict[str, Any] = field(default_factory=dict)


@dataclass
class ReplayConfig:
    fraction: float = 0.0
    rows: int = 1
    size: int = 512
    per_prototype: int = 4
    age: int = 50


@dataclass
class RayConfig:
    """Where reward workers run and what each of them may use; `docs/scaling.md` says how to choose."""

    address: str | None = None
    chunk: int = 8
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    memory_mb: int = 0
    timeout_s: float = 120.0
    start_timeout_s: float = 300.0


@dataclass
class FinetuneConfig:
    """Settings of `python -m rlgen.finetune`."""

    policy: str = "shipped"
    representation: str | None = None
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    energy: str = "auto"
    judge: str = "auto"
    data: str = "shipped"
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    off_prompt: float = 0.25
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    output: str = "runs/finetune"
    seed: int = 0
    steps: int = 90
    batch: int = 128
    workers: int = 2
    ray: RayConfig = field(default_factory=RayConfig)
    evaluate: int = 160
    relax_steps: int = 40
    pipeline: int = 0
    stages: Any = field(default_factory=list)
    collapse: CollapseConfig = field(default_factory=CollapseConfig)
    real_every: int = 10
    checkpoint_every: int = 10
    resume: str | None = None
    resume_changed: bool = False
    device: str = "auto"


@dataclass
class SampleConfig:
    """Settings of `python -m rlgen.sample`."""

    policy: str = "shipped"
    representation: str | None = None
    n: int = 100
    output: str = "samples"
    formats: str = "cif,extxyz"
    seed: int = 0
    batch: int = 256
    temperature: float | None = None
    guidance: float | None = None
    condition: dict[str, Any] = field(default_factory=dict)
    infill: str | None = None
    mask: str | None = None
    draws: int = 8
    device: str = "auto"


@dataclass
class MetricsConfig:
    """What counts as what in an evaluation: docs/evaluation.md has the source of each number."""

    min_distance: float = 0.5
    min_volume: float = 0.1
    radii: float = 0.6
    oxidation_states: str = "icsd24"
    ltol: float = 0.2
    stol: float = 0.3
    angle_tol: float = 5.0
    stable: float = 0.0
    metastable: float = 0.1
    cov_structure: float = 0.4
    cov_composition: float = 10.0


@dataclass
class EvaluateConfig:
    """Settings of `python -m rlgen.evaluate`."""

    input: str = "???"
    compare: str | None = None
    output: str | None = "evaluation"
    run: str | None = None
    energy: str = "auto"
    hull: str | None = None
    data: str = "shipped"
    real: str | None = "shipped"
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    relax_steps: int = 100
    workers: int = 2
    ray: RayConfig = field(default_factory=RayConfig)
    seed: int = 0


@dataclass
class HullConfig:
    """Settings of `python -m rlgen.hull`."""

    energy: str = "auto"
    data: str = "mp20"
    splits: str = "train,val"
    output: str | None = None
    workers: int = 2
    ray: RayConfig = field(default_factory=RayConfig)
    checkpoint_every: int = 512


@dataclass
class AnnotateConfig:
    """Settings of `python -m rlgen.annotate`."""

    data: str = "???"
    output: str = "???"
    columns: str = "e_above_hull,band_gap"
    functions: dict[str, Any] = field(default_factory=dict)
    energy: str = "auto"
    hull: str | None = None
    limit: int | None = None
    workers: int = 2
    ray: RayConfig = field(default_factory=RayConfig)
    checkpoint_every: int = 256


@dataclass
class SearchConfig:
    """What `python -m rlgen.explore` and `python -m rlgen.predict` share."""

    condition: dict[str, Any] = field(default_factory=dict)
    policy: str = "shipped"
    representation: str | None = None
    n: int = 500
    output: str = "explored"
    seed: int = 0
    batch: int = 256
    temperature: float | None = None
    guidance: float | None = None
    energy: str = "auto"
    data: str = "shipped"
    fmax: float = 0.1
    steps: int = 200
    seconds: float | None = 600.0
    workers: int = 2
    device: str = "auto"


@dataclass
class ExploreConfig(SearchConfig):
    """Settings of `python -m rlgen.explore`."""

    elements: str = "???"


@dataclass
class PredictConfig(SearchConfig):
    """Settings of `python -m rlgen.predict`."""

    formula: str = "???"
    n: int = 20
    output: str = "predicted"


@dataclass
class RelaxConfig:
    """Settings of `python -m rlgen.relax`."""

    input: str = "???"
    output: str = "???"
    formats: str = "cif,extxyz"
    energy: str = "auto"
    mode: str = "full"
    symmetry: bool = False
    fmax: float = 0.1
    steps: int = 200
    seconds: float | None = 600.0
    workers: int = 2


@dataclass
class ForetellConfig:
    """Settings of `python -m rlgen.foretell`."""

    input: str = "???"
    relaxed: str = "???"
    output: str = "???"
    epochs: int = 5
    batch: int = 24
    learning_rate: float = 5e-4
    held_out: float = 0.1
    seed: int = 0


@dataclass
class MergeConfig:
    """Settings of `python -m rlgen.merge`."""

    runs: str = "???"
    strength: float = 1.0
    output: str = "???"


#: What a number may at least be, by the last part of its key; shares are also at most 1.
LEAST: dict[str, float] = (
    dict.fromkeys(("steps", "batch", "minibatch", "num_iterations", "group_size", "n", "evaluate_every",
                   "checkpoint_every", "patience", "samples", "draws", "bucket", "window", "rows", "size",
                   "per_prototype", "age", "chunk", "hidden_size", "layers", "heads", "intermediate_size",
                   "epochs"), 1)
    | dict.fromkeys(("seed", "threads", "workers", "warmup", "sample_every", "evaluate", "learning_rate",
                     "value_learning_rate", "weight_decay", "max_grad_norm", "relax_steps", "epsilon_high", "beta",
                     "entropy_coef", "lora_rank", "lora_alpha", "power", "quota", "memory_mb", "cpus_per_worker",
                     "gpus_per_worker", "min_distance", "min_volume", "radii", "ltol", "stol", "angle_tol",
                     "cov_structure", "cov_composition", "guidance", "strength"), 0)
    | {"temperature": 1e-3, "target_kl": 1e-6, "cliprange_value": 1e-6, "timeout_s": 0.1, "start_timeout_s": 0.1,
       "fmax": 1e-4, "seconds": 1e-3}
)
#: By the last part of a key, or by all of it.
SHARES = ("decay", "dropout", "lora_dropout", "condition_dropout", "property_dropout", "ema", "epsilon", "gamma",
          "lam", "off_prompt", "min_score", "slower", "replay.fraction", "prompts.space_group", "prompts.n_atoms",
          "prompts.element", "prompts.diversity", "held_out")

SCHEMAS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "sample": SampleConfig, "evaluate": EvaluateConfig,
           "hull": HullConfig, "relax": RelaxConfig, "foretell": ForetellConfig, "merge": MergeConfig,
           "annotate": AnnotateConfig, "explore": ExploreConfig, "predict": PredictConfig}
#: What a resumed run may be given anew without more ado: it changes how a run goes, not what it learns.
FREE = {"pretrain": ("checkpoint_every", "sample_every", "samples", "workers"),
        "finetune": ("steps", "workers", "checkpoint_every", "evaluate", "relax_steps", "judge", "ray.address",
                     "ray.cpus_per_worker", "ray.gpus_per_worker", "ray.memory_mb", "ray.timeout_s",
                     "ray.start_timeout_s")}
#: Keys with a short name of their own.
SHORT = {"pretrain": {"representation": "policy.representation"}, "finetune": {"reward": "reward.expression"}}
