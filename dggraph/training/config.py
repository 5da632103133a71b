"""The configuration of a training run: a flat table of keys, with timm's names where it has them.

It is read from TOML and overridden by flags. Unknown keys and invalid values are rejected before
anything is loaded.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from dggraph.errors import InputError
from dggraph.system.paths import locate
from dggraph.system.toml_files import read_toml
from dggraph.training.config_errors import explain

if TYPE_CHECKING:  # the command line reads configurations without torch
    from dggraph.data.augmentation import Augmentation
    from dggraph.data.sources import Source
    from dggraph.models.preprocessing import Preprocess

MAX_TOLD = 20
"""How many faults of a configuration one message names."""
MAX_SEED = 2**64 - 1
"""The largest seed of torch."""
RECIPES = Path(__file__).parents[1] / "recipes"


class TrainConfig(BaseModel):
    """All keys of a run.

    Example:
        >>> from dggraph.training import TrainConfig
        >>> TrainConfig(model="resnet18", lr=0.05).lr
        0.05
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: Literal["classification", "detection"] = Field(
        "classification", description="One label per image, or boxes from a torchvision detector."
    )
    model: str = Field(
        description=(
            "MODEL to convert and train: a torchvision name, timm:NAME, dggraph:NAME or"
            " package.module:function. For detection, a detector, whose backbone is converted, or a"
            " classifier, which becomes Faster R-CNN with a feature pyramid."
        )
    )
    checkpoint: Path | None = Field(None, description="State dict that the MODEL starts from.")
    pretrained: bool = Field(
        False, description="Start from the default weights of torchvision or timm."
    )
    num_classes: int | None = Field(
        None, ge=1, description="Outputs of the classifier; by default the data set's classes."
    )
    input_size: int | None = Field(
        None,
        ge=1,
        description=(
            "Side of the square input in pixels, or shorter side for detection; by default the"
            " model's."
        ),
    )
    max_size: int | None = Field(
        None,
        ge=1,
        description="Longest side of a detector's input in pixels; by default 5/3 of input_size.",
    )
    method: str = Field(
        "dynamic_graph",
        description=(
            "What makes the network from the model: dynamic_graph, or a baseline with its options"
            " in brackets, such as cond_conv(experts=4)."
        ),
    )
    without: str = Field(
        "",
        description=(
            "With router none: blocks that the static backbone does without, by module path, joined"
            " by +, such as layer1.1+layer2.2."
        ),
    )
    wiring: str = Field(
        "complete", description="Candidate edges: complete, window(k)+entry, dilated(k, p), ..."
    )
    residual: Literal["auto", "keep", "lift"] = Field(
        "auto",
        description="Keep identity residuals inside their blocks, or lift them to edges.",
    )
    router: str = Field(
        "node",
        description=(
            "node, stage, node(16, inputs=pool+std, norm=rms, gradient=stop), content, tied,"
            " constant, a registered name, or none, which trains the static backbone."
        ),
    )
    gate: str | None = Field(
        None, description="anchored, shrink, scaled, softmax, sigmoid, or a registered name."
    )
    granularity: str = Field(
        "edge",
        description=(
            "Weights of an edge: edge (one), a number of channel groups, channel, or pixel."
        ),
    )
    aggregation: Literal["sum", "additive"] = Field(
        "sum",
        description=(
            "How nodes read their sources: the weighted sum, or, with lifted residuals, the plain"
            " sum and a normalised weighted one with a learned gain."
        ),
    )
    init: Literal["preserve", "scratch"] = Field(
        "preserve",
        description="Start as the backbone (preserve), or with every edge open (scratch).",
    )

    objective: Literal["labels", "distill"] = Field(
        "labels",
        description=(
            "labels: cross-entropy. distill: the outputs of the static network on any images, for"
            " which it must be trained."
        ),
    )
    tune: Literal["all", "norms", "routers"] = Field(
        "all",
        description=(
            "What is trained in addition to the routers: everything, the weights of norms, or"
            " nothing. Norm statistics change with all only."
        ),
    )
    decide: Literal["edges", "blocks"] = Field(
        "edges",
        description=(
            "What routers decide on: each edge, or each lifted block with all its edges together."
            " Other blocks stay static."
        ),
    )
    pin_divergence: float | None = Field(
        None,
        gt=0,
        description=(
            "Pin open each block whose removal changes the static network's outputs by more than"
            " this mean KL divergence in nats."
        ),
    )

    dataset: str = Field(
        "imagefolder",
        description=(
            "imagefolder, fashion_mnist, diverse_fashion, mnist, cifar10 or cifar100; coco or voc"
            " for detection; or package.module:function."
        ),
    )
    domains: str | None = Field(
        None,
        description=(
            "For diverse_fashion, the family of domains: D0 (one domain) to D4 (64), or H (one"
            " hard domain)."
        ),
    )
    data_dir: Path | None = Field(None, description="Folder of the data set.")
    on_bad_box: Literal["error", "skip"] = Field(
        "error",
        description=(
            "Stop at invalid annotations and unreadable images, or leave them out and report how"
            " many."
        ),
    )
    on_bad_image: Literal["error", "skip"] = Field(
        "error",
        description=(
            "Stop at unreadable images; or read all images once before training, leave unreadable"
            " ones out and report how many."
        ),
    )
    mean: tuple[float, ...] | None = Field(
        None, description="Mean that normalises pixels; by default the model's."
    )
    std: tuple[float, ...] | None = Field(
        None, description="Standard deviation that normalises pixels; by default the model's."
    )
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="Interpolation for resizing; by default the model's."
    )
    crop_pct: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the resized side kept in evaluation; by default the model's.",
    )
    scale: tuple[float, float] = Field(
        (0.08, 1.0), description="Range of the random resized crop's area."
    )
    ratio: tuple[float, float] = Field(
        (0.75, 4 / 3), description="Range of the random resized crop's aspect ratio."
    )
    crop_padding: int | None = Field(
        None,
        ge=0,
        description="For small images: pad by this many pixels and crop, without resizing.",
    )
    hflip: float = Field(0.5, ge=0, le=1, description="Probability of a horizontal flip.")
    color_jitter: float = Field(
        0.0, ge=0, description="Strength of brightness, contrast and saturation jitter."
    )
    randaugment: tuple[int, int] | None = Field(
        None, description="RandAugment: number of operations, magnitude."
    )
    reprob: float = Field(0.0, ge=0, le=1, description="Probability of random erasing.")
    mixup: float = Field(0.0, ge=0, description="Alpha of MixUp; 0 disables it.")
    cutmix: float = Field(
        0.0, ge=0, description="Alpha of CutMix; 0 disables it. With both, each batch draws one."
    )
    smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing.")

    epochs: int = Field(100, ge=1, description="Passes over the training set.")
    epoch_steps: int | None = Field(
        None,
        ge=1,
        description=(
            "Steps of an epoch; by default the complete batches of the training set, which is also"
            " the most."
        ),
    )
    batch_size: int = Field(128, ge=1, description="Images per process and step.")
    grad_accum_steps: int = Field(
        1, ge=1, description="Number of parts of a batch, whose gradients are accumulated."
    )
    validation_batch_size: int | None = Field(
        None,
        ge=1,
        description=(
            "Images per batch in evaluation; by default 256, or 1 for detection, where images of a"
            " batch are padded to one size."
        ),
    )
    workers: int = Field(0, ge=0, description="Number of loader processes.")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description=(
            "How several processes share the work: each has the complete network (ddp), or a shard"
            " of every weight (fsdp, FSDP2)."
        ),
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Seed of weights, order and augmentation.")

    opt: str = Field("sgd", description="Optimiser, by timm's name.")
    lr: float = Field(0.1, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(
        1e-4, ge=0, description="Weight decay, except for norms, biases and routers."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum, for optimisers that have it.")
    router_lr: float | None = Field(
        None,
        gt=0,
        description=(
            "Peak learning rate of the routers; by default a tenth of lr, or lr unless all weights"
            " learn (tune)."
        ),
    )
    clip_grad: float | None = Field(None, gt=0, description="Clip gradients to this norm.")
    sched: str = Field("cosine", description="Schedule of the learning rate, by timm's name.")
    warmup_epochs: float = Field(
        5, ge=0, description="Epochs of linear warm-up from warmup_lr to lr."
    )
    warmup_lr: float = Field(1e-5, ge=0, description="Learning rate at the start of the warm-up.")
    min_lr: float = Field(0.0, ge=0, description="Learning rate at the end of the schedule.")
    decay_epochs: float = Field(30, gt=0, description="Epochs between decays of the step schedule.")
    decay_milestones: tuple[int, ...] = Field(
        (90, 180, 270), description="Epochs at which the multistep schedule decays."
    )
    decay_rate: float = Field(
        0.1,
        gt=0,
        description=(
            "Factor of each decay of the step and multistep schedules; of poly, its power, 1 for a"
            " straight line."
        ),
    )
    model_ema: bool = Field(
        False, description="Track and evaluate an exponential moving average of the weights."
    )
    model_ema_decay: float = Field(0.9998, ge=0, lt=1, description="Decay of that average.")
    amp: Literal["none", "bfloat16", "float16"] = Field(
        "none", description="Dtype of autocast; float16 uses loss scaling."
    )
    channels_last: bool = Field(False, description="Memory format of images and weights.")
    torchcompile: bool = Field(False, description="Compile the training step's forward pass.")
    recompute: bool = Field(
        False,
        description="Compute the sums in front of blocks again instead of keeping them: less"
        " memory, a little more time.",
    )

    threshold: float | None = Field(
        None,
        ge=0,
        lt=1,
        description=(
            "Edges at or below it are dropped; the value at the end of training. By default 0, or"
            " 0.5 with a budget: no static edge closes unless one of them is given."
        ),
    )
    threshold_warmup: float = Field(
        0.5, ge=0, le=1, description="Share of the run over which the threshold rises from 0."
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description=(
            "Temperature of the gates at the end of training; it starts at 1, with the gate softmax"
            " at 30, and falls geometrically."
        ),
    )
    budget: float | None = Field(None, gt=0, description="Target of the mean MACs ratio.")
    budget_weight: float | None = Field(
        None,
        gt=0,
        description=(
            "Factor of the budget loss, fixed for the whole run; by default it adapts until the"
            " budget is met."
        ),
    )

    output: Path = Field(Path("runs"), description="Folder of all runs.")
    experiment: str = Field(
        "",
        description=("Name of this run's folder; by default the model and a digest of the keys."),
    )
    checkpoint_hist: int = Field(
        2, ge=1, description="Checkpoints to keep in addition to the best one."
    )
    checkpoint_steps: int = Field(
        0, ge=0, description="Also save a checkpoint every so many steps; 0: each epoch only."
    )
    log_interval: int = Field(50, ge=1, description="Steps between rows of metrics.")
    tensorboard: bool = Field(False, description="Also write event files, into RUN/tensorboard.")

    @pydantic.field_validator("checkpoint", "data_dir", "output", mode="before")
    @classmethod
    def _is_located(cls, value: Any) -> Any:
        if not isinstance(value, str | Path):
            return value
        try:
            found = locate(value)
        except InputError as error:
            raise ValueError(str(error).rstrip(".")) from error
        if any(ord(character) < 32 for character in str(found)) and not found.exists():
            raise ValueError(
                "a control character in a path usually comes from a backslash, which starts an"
                " escape in \"...\": write the path in single quotes, '...', or with /"
            )
        return str(found)  # in JSON mode pydantic does not accept a Path

    @pydantic.field_validator("scale", "ratio")
    @classmethod
    def _is_range(
        cls, value: tuple[float, float], info: pydantic.ValidationInfo
    ) -> tuple[float, float]:
        low, high = value
        if not 0 < low <= high or (info.field_name == "scale" and high > 1):
            raise ValueError(
                "give two numbers above 0, the smaller one first"
                + (", of at most 1" if info.field_name == "scale" else "")
            )
        return value

    @pydantic.field_validator("randaugment")
    @classmethod
    def _is_magnitude(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not (value[0] >= 1 and 0 <= value[1] <= 30):
            raise ValueError("give at least one operation, and a magnitude from 0 to 30")
        return value

    @pydantic.field_validator("grad_accum_steps")
    @classmethod
    def _is_part(cls, value: int, info: pydantic.ValidationInfo) -> int:
        if info.data.get("batch_size", value) % value:
            raise ValueError(
                f"batch_size = {info.data['batch_size']} cannot be split into {value} equal parts"
            )
        return value

    @property
    def final_threshold(self) -> float:
        """The threshold at the end of training."""
        if self.threshold is not None:
            return self.threshold
        return 0.0 if self.budget is None else 0.5

    @property
    def router_rate(self) -> float:
        """Peak learning rate of the routers."""
        if self.router_lr is not None:
            return self.router_lr
        return 0.1 * self.lr if self.tune == "all" else self.lr

    @property
    def conversion(self) -> dict[str, Any]:
        """The options of `convert` at the start of training."""
        threshold = 0.0 if self.threshold_warmup else self.final_threshold
        names = ("wiring", "residual", "router", "gate", "granularity", "aggregation", "init")
        return {name: getattr(self, name) for name in names} | {"threshold": threshold}

    @property
    def removed_blocks(self) -> tuple[str, ...]:
        """The module paths of `without`."""
        return tuple(path.strip() for path in self.without.split("+") if path.strip())

    @property
    def has_method(self) -> bool:
        """Whether a baseline makes the network."""
        return self.method != "dynamic_graph"

    @property
    def source(self) -> "Source":
        """The data set."""
        from dggraph.data.sources import Source

        names = ("dataset", "data_dir", "domains", "num_classes", "on_bad_image", "on_bad_box")
        return Source(
            **{name: getattr(self, name) for name in names},
            is_labelled=self.objective == "labels",
            argument=self,
        )

    @property
    def augmentation(self) -> "Augmentation":
        """The random augmentation of training images."""
        from dggraph.data.augmentation import Augmentation

        return Augmentation(**{one.name: getattr(self, one.name) for one in fields(Augmentation)})

    @property
    def evaluation_batch_size(self) -> int:
        """Batch size of the evaluation."""
        return self.validation_batch_size or (1 if self.task == "detection" else 256)

    def fingerprint(self) -> dict[str, Any]:
        """Return the keys that decide what a run computes, as JSON.

        A run can only be resumed with the same ones.
        """
        passing = {
            "output",
            "experiment",
            "checkpoint_hist",
            "checkpoint_steps",
            "workers",
            "parallel",
            "recompute",
        }
        passing |= set() if self.task == "detection" else {"validation_batch_size"}
        # runs from before these keys go on
        later = ("pretrained", "domains", "epoch_steps", "without")
        passing |= {key for key in later if not getattr(self, key)}
        passing |= set() if self.has_method else {"method"}
        keys = self.model_dump(mode="json", exclude=passing | {"tensorboard"})
        if self.budget is None and self.budget_weight is None:
            keys["budget_weight"] = 1.0  # without a meaning; what older runs stored
        return keys


def read_config(file: Path | None, overrides: Mapping[str, Any]) -> TrainConfig:
    """Read the keys of a TOML `file` or a shipped recipe, overridden by `overrides`.

    Raises:
        InputError: there is no such file, it is not TOML, a key is unknown, or a value is invalid;
            names file and key.

    Example:
        >>> from pathlib import Path
        >>> from dggraph.training import read_config
        >>> read_config(Path("fashion_mnist"), {"epochs": 1}).model
        'dggraph:resnet20_8'
    """
    keys: dict[str, Any] = {}
    if file is not None:
        shipped = RECIPES / f"{file}.toml"
        file = (
            shipped if not file.exists() and file.name == str(file) and shipped.is_file() else file
        )
        try:
            keys = read_toml(file)
        except OSError as error:
            names = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
            raise InputError(
                f"cannot read the configuration {file}: {error.strerror or error}. Give a .toml"
                f" file, or one of the recipes {names}."
            ) from error
    keys |= {key: value for key, value in overrides.items() if value is not None}
    try:
        return TrainConfig(**keys)
    except pydantic.ValidationError as error:
        found = error.errors()
        first = (explain(one, file, TrainConfig).rstrip(".") for one in found[:MAX_TOLD])
        told = list(dict.fromkeys(first))
        told += [f"and {len(found) - MAX_TOLD} more"] if len(found) > MAX_TOLD else []
        raise InputError(f"{'; '.join(told)}.") from error


def configured(preprocess: "Preprocess", config: TrainConfig) -> "Preprocess":
    """Return `preprocess` with the values that `config` overrides."""
    given: dict[str, Any] = {
        "mean": config.mean,
        "std": config.std,
        "interpolation": config.interpolation,
    }
    given["crop_fraction"] = config.crop_pct
    return replace(
        preprocess, **{name: value for name, value in given.items() if value is not None}
    )
