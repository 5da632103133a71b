"""What a training run is: one flat table of keys, named as timm names them where it has them.

Read from TOML, overridden by flags, and refused where a key is unknown or a value makes no sense,
before anything is loaded.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from dggraph.errors import InputError
from dggraph.system.paths import decode_text, locate

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[import-not-found,no-redef]

if TYPE_CHECKING:  # the command line reads configurations without torch
    from dggraph.data.augmentation import Augmentation
    from dggraph.data.sources import Source
    from dggraph.models.preprocessing import Preprocess

RECIPES = Path(__file__).parents[1] / "recipes"


class TrainConfig(BaseModel):
    """Every key of a run.

    Example:
        >>> from dggraph.training import TrainConfig
        >>> TrainConfig(model="resnet18", lr=0.05).lr
        0.05
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: Literal["classification", "detection"] = Field(
        "classification", description="One label an image, or boxes by a torchvision detector."
    )
    model: str = Field(
        description=(
            "MODEL to convert and train: torchvision's name, timm:NAME, dggraph:NAME or"
            " package.module:function. For detection a detector, whose backbone is converted, or a"
            " classifier, which becomes Faster R-CNN with a feature pyramid."
        )
    )
    checkpoint: Path | None = Field(None, description="State dict that the MODEL starts from.")
    num_classes: int | None = Field(
        None, ge=1, description="Outputs of the classifier; by default the data set's classes."
    )
    input_size: int | None = Field(
        None,
        ge=1,
        description=(
            "Side of the square input in pixels, for detection its shorter side; by default the"
            " model's."
        ),
    )
    max_size: int | None = Field(
        None,
        ge=1,
        description="Longest side of a detector's input in pixels; by default 5/3 of input_size.",
    )
    wiring: str = Field("complete", description="Candidate edges: complete, window(k), ...")
    residual: Literal["auto", "keep", "lift"] = Field(
        "auto", description="What becomes of identity residuals."
    )
    router: str = Field(
        "node",
        description=(
            "node, stage, node(16), a registered name, or none: train the static backbone itself."
        ),
    )
    gate: str | None = Field(None, description="anchored, sigmoid, or a registered name.")
    init: Literal["preserve", "scratch"] = Field(
        "preserve", description="preserve starts as the backbone; scratch with every edge open."
    )

    objective: Literal["labels", "distill"] = Field(
        "labels",
        description=(
            "labels: cross-entropy. distill: the static network's own outputs, from any images;"
            " needs a trained one."
        ),
    )
    tune: Literal["all", "norms", "routers"] = Field(
        "all",
        description=(
            "What learns besides the routers: everything, the norms' weights, or nothing; norm"
            " statistics stay unless all."
        ),
    )
    decide: Literal["edges", "blocks"] = Field(
        "edges",
        description=(
            "What routers decide about: each edge, or each lifted block with all its edges as one,"
            " where the others stay static."
        ),
    )
    pin_divergence: float | None = Field(
        None,
        gt=0,
        description=(
            "Pin open the blocks without which the static network's outputs move by more, as mean"
            " KL divergence in nats."
        ),
    )

    dataset: str = Field(
        "imagefolder",
        description=(
            "imagefolder, fashion_mnist, mnist, cifar10, cifar100; for detection coco or voc; or"
            " package.module:function."
        ),
    )
    data_dir: Path | None = Field(None, description="Where the data set is.")
    on_bad_box: Literal["error", "skip"] = Field(
        "error",
        description=(
            "Stop at images and boxes whose annotations make no sense, or leave them out, and"
            " images that cannot be read too, and say how many."
        ),
    )
    on_bad_image: Literal["error", "skip"] = Field(
        "error",
        description=(
            "Stop at images that cannot be read, or read all of them once before training, leave"
            " those out, and say how many."
        ),
    )
    mean: tuple[float, ...] | None = Field(
        None, description="Of the normalised pixels; by default the model's."
    )
    std: tuple[float, ...] | None = Field(
        None, description="Of the normalised pixels; by default the model's."
    )
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="For resizing; by default the model's."
    )
    crop_pct: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the resized side kept in evaluation; by default the model's.",
    )
    scale: tuple[float, float] = Field((0.08, 1.0), description="Area of a random resized crop.")
    ratio: tuple[float, float] = Field(
        (0.75, 4 / 3), description="Aspect of a random resized crop."
    )
    crop_padding: int | None = Field(
        None,
        ge=0,
        description="Instead of resized crops: pad by so many pixels and crop, for small images.",
    )
    hflip: float = Field(0.5, ge=0, le=1, description="Probability of a horizontal flip.")
    color_jitter: float = Field(
        0.0, ge=0, description="Strength of brightness, contrast and saturation jitter."
    )
    randaugment: tuple[int, int] | None = Field(
        None, description="RandAugment: number of operations, magnitude."
    )
    reprob: float = Field(0.0, ge=0, le=1, description="Probability of random erasing.")
    mixup: float = Field(0.0, ge=0, description="MixUp alpha; 0 is off.")
    cutmix: float = Field(
        0.0, ge=0, description="CutMix alpha; 0 is off. With both, each batch draws one."
    )
    smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing.")

    epochs: int = Field(100, ge=1, description="Passes over the training set.")
    batch_size: int = Field(128, ge=1, description="Images of one process and step.")
    grad_accum_steps: int = Field(1, ge=1, description="Parts that a batch is split into.")
    validation_batch_size: int | None = Field(
        None,
        ge=1,
        description=(
            "Images at a time in evaluation; by default 256, for detection 1, since images of a"
            " batch pad each other."
        ),
    )
    workers: int = Field(0, ge=0, description="Loader processes.")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description=(
            "How several processes share the work: each has the whole network, or a share of every"
            " weight (FSDP2)."
        ),
    )
    seed: int = Field(0, ge=0, description="Of weights, order and augmentation.")

    opt: str = Field("sgd", description="timm's name of an optimiser.")
    lr: float = Field(0.1, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(
        1e-4, ge=0, description="Of weights; norms, biases and routers get none."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="For optimisers that have one.")
    router_lr: float | None = Field(
        None, gt=0, description="Peak learning rate of the routers; by default lr."
    )
    clip_grad: float | None = Field(None, gt=0, description="Largest gradient norm.")
    sched: str = Field("cosine", description="timm's name of a schedule.")
    warmup_epochs: float = Field(5, ge=0, description="Linear from warmup_lr to lr.")
    warmup_lr: float = Field(1e-5, ge=0, description="Where the warm-up starts.")
    min_lr: float = Field(0.0, ge=0, description="Where the schedule ends.")
    decay_epochs: float = Field(30, gt=0, description="For step schedules.")
    decay_milestones: tuple[int, ...] = Field(
        (90, 180, 270), description="Epochs at which the multistep schedule decays."
    )
    decay_rate: float = Field(0.1, gt=0, description="For step schedules.")
    model_ema: bool = Field(False, description="Keep and evaluate an average of the weights.")
    model_ema_decay: float = Field(
        0.9998, ge=0, lt=1, description="How slowly the average follows."
    )
    amp: Literal["none", "bfloat16", "float16"] = Field(
        "none", description="Autocast; float16 scales its loss."
    )
    channels_last: bool = Field(False, description="Memory format of images and weights.")
    torchcompile: bool = Field(False, description="Compile the training step's forward pass.")

    threshold: float = Field(
        0.5, ge=0, lt=1, description="Edges at or below it are dropped, at the end of training."
    )
    threshold_warmup: float = Field(
        0.5, ge=0, le=1, description="Share of the run over which the threshold rises from 0."
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="Of the gates at the end of training; starts at 1 and falls geometrically.",
    )
    budget: float | None = Field(
        None, gt=0, description="Mean MACs to keep, as a fraction of the static network's."
    )
    budget_weight: float = Field(1.0, gt=0, description="Factor of the budget's loss.")

    output: Path = Field(Path("runs"), description="Folder of runs.")
    experiment: str = Field(
        "",
        description=(
            "Name of this run's folder; by default from the model and a digest of the keys."
        ),
    )
    checkpoint_hist: int = Field(2, ge=1, description="Checkpoints to keep besides the best.")
    checkpoint_steps: int = Field(
        0, ge=0, description="Also checkpoint after so many steps; 0: each epoch only."
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
                "a control character in a path was mostly a backslash once, which begins an escape"
                " in \"...\": write the path in single quotes, '...', or with /"
            )
        return str(found)  # of JSON pydantic takes no Path

    @pydantic.field_validator("scale", "ratio")
    @classmethod
    def _is_range(
        cls, value: tuple[float, float], info: pydantic.ValidationInfo
    ) -> tuple[float, float]:
        low, high = value
        if not 0 < low <= high or (info.field_name == "scale" and high > 1):
            raise ValueError(
                "give the smaller one first, above 0"
                + (" and up to 1" if info.field_name == "scale" else "")
            )
        return value

    @pydantic.field_validator("randaugment")
    @classmethod
    def _is_magnitude(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not (value[0] >= 1 and 0 <= value[1] <= 30):
            raise ValueError("at least one operation, of a magnitude from 0 to 30")
        return value

    @pydantic.field_validator("grad_accum_steps")
    @classmethod
    def _is_part(cls, value: int, info: pydantic.ValidationInfo) -> int:
        if info.data.get("batch_size", value) % value:
            raise ValueError(
                f"batch_size = {info.data['batch_size']} does not split into so many equal parts"
            )
        return value

    @property
    def conversion(self) -> dict[str, Any]:
        """Options of `convert`, as training begins."""
        threshold = 0.0 if self.threshold_warmup else self.threshold
        names = ("wiring", "residual", "router", "gate", "init")
        return {name: getattr(self, name) for name in names} | {"threshold": threshold}

    @property
    def source(self) -> "Source":
        """The data set."""
        from dggraph.data.sources import Source

        names = ("dataset", "data_dir", "num_classes", "on_bad_image", "on_bad_box")
        return Source(
            **{name: getattr(self, name) for name in names},
            is_labelled=self.objective == "labels",
            argument=self,
        )

    @property
    def augmentation(self) -> "Augmentation":
        """What is drawn at random for a training image."""
        from dggraph.data.augmentation import Augmentation

        return Augmentation(**{one.name: getattr(self, one.name) for one in fields(Augmentation)})

    @property
    def judged_at_a_time(self) -> int:
        """Images at a time in evaluation."""
        return self.validation_batch_size or (1 if self.task == "detection" else 256)

    def fingerprint(self) -> dict[str, Any]:
        """The keys that decide what a run computes, as JSON: a run goes on only where these are the
        same.
        """
        passing = {
            "output",
            "experiment",
            "checkpoint_hist",
            "checkpoint_steps",
            "workers",
            "parallel",
        }
        passing |= set() if self.task == "detection" else {"validation_batch_size"}
        return self.model_dump(mode="json", exclude=passing | {"tensorboard"})


def read_config(file: Path | None, overrides: Mapping[str, Any]) -> TrainConfig:
    """The keys of a TOML `file`, or of a shipped recipe's name, those in `overrides` first.

    Raises:
        InputError: no such file, no TOML, an unknown key, or a value that is none; names file and
            key.

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
            text = decode_text(file.read_bytes())
            keys = tomllib.loads(text)
        except OSError as error:
            names = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
            raise InputError(
                f"cannot read the configuration {file}: {error.strerror or error}. Name a .toml"
                f" file, or one of the recipes {names}."
            ) from error
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not text in UTF-8: {error}. Save it as UTF-8.") from error
        except tomllib.TOMLDecodeError as error:
            raise InputError(
                f"{file} is not TOML: {error}.{_on_backslashes(text, error)}"
            ) from error
    keys |= {key: value for key, value in overrides.items() if value is not None}
    try:
        return TrainConfig(**keys)
    except pydantic.ValidationError as error:
        raise InputError("; ".join(_explain(one, file) for one in error.errors())) from error


def configured(preprocess: "Preprocess", config: TrainConfig) -> "Preprocess":
    """`preprocess`, with what `config` says of it."""
    given: dict[str, Any] = {
        "mean": config.mean,
        "std": config.std,
        "interpolation": config.interpolation,
    }
    given["crop_fraction"] = config.crop_pct
    return replace(
        preprocess, **{name: value for name, value in given.items() if value is not None}
    )


def _on_backslashes(text: str, error: Exception) -> str:
    """Paths as Windows writes them are the likeliest reason of an error in a line that has a
    backslash.
    """
    found = re.search(r"at line (\d+)", str(error))
    lines = text.split("\n")
    line = lines[int(found.group(1)) - 1] if found and int(found.group(1)) <= len(lines) else ""
    if "\\" not in line:
        return ""
    return (
        ' In "..." a backslash begins an escape: write a Windows path in single quotes,'
        " 'C:\\data', or with /, \"C:/data\"."
    )


def _explain(error: Any, file: Path | None) -> str:
    key = ".".join(str(part) for part in error["loc"])
    where = f" in {file}" if file is not None else ""
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, TrainConfig.model_fields, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "`dggraph train --help` lists them."
        return f"unknown key {key!r}{where}: {hint}"
    if error["type"] == "missing":
        return f"{key!r} is missing{where}; give it there or as --{key.replace('_', '-')}."
    return f"{key} = {error['input']!r}{where}: {error['msg']}."
