"""The command that trains a run again."""

import shlex
from typing import Any

from dggraph.training.config import TrainConfig


def command_of(config: TrainConfig) -> str:
    """Return the command that trains one run again, with every key that is not at its default."""
    given = config.model_dump(mode="json", exclude_defaults=True)
    words = ["dggraph", "train"]
    for name, value in given.items():
        if name in ("output", "experiment", "checkpoint_steps", "log_interval"):
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list) and _is_repeated(name):
            words += [word for one in value for word in (flag, _quoted(one))]
        else:
            words += [flag, *map(_quoted, value if isinstance(value, list) else [value])]
    return " ".join(words)


def _is_repeated(name: str) -> bool:
    """Whether a flag is given once for each value, as those of any number of values are."""
    return "..." in str(TrainConfig.model_fields[name].annotation).replace("Ellipsis", "...")


def _quoted(value: Any) -> str:
    return shlex.quote(str(value))
