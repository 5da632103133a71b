"""The plan of a comparison: methods x seeds x budgets x families x data sets, each one run.

It is read from a TOML file. `[recipe]` has the keys that all runs share; `[data.NAME]`,
`[families.NAME]` and `[methods.NAME]` override them, in this order, and
`[methods.NAME.families.FAMILY]` overrides them for that family alone. Every key is one of
`dggraph train`, so a method is whatever training can be asked for.
"""

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from dggraph.errors import InputError
from dggraph.system.toml_files import read_toml
from dggraph.training.budget_verdict import remarks_on_budget
from dggraph.training.config import MAX_TOLD, TrainConfig, read_config

OWN_KEYS = ("seed", "budget", "output", "experiment")
"""Keys of a run that the plan sets itself."""
CHECKPOINT_STEPS = 500
"""Steps between checkpoints where the recipe does not say; a killed run repeats at most these."""
LOG_INTERVAL = 10
MAX_RUNS = 10_000


class Comparison(BaseModel):
    """The keys of a comparison."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    output: Path | None = None
    """Folder of rows, runs and report; by default runs/ and the name of the file."""
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    budgets: tuple[float, ...] = ()
    """Targets of the MACs ratio for each method that has a router, besides none."""
    baseline: str = "static"
    """The method that the others are compared with: the static network."""
    controls: tuple[str, ...] = ()
    """Other methods to compare with: static edges, and static networks of the same size."""
    curve: tuple[str, ...] = ()
    """Static networks of several sizes, whose accuracies over MACs are the curve to beat."""
    recipe: dict[str, Any] = {}
    families: dict[str, dict[str, Any]] = {"": {}}
    data: dict[str, dict[str, Any]] = {"": {}}
    methods: dict[str, dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run of the plan."""

    method: str
    family: str
    data: str
    seed: int
    budget: float | None
    config: TrainConfig
    """With `output` and `experiment` set."""
    baseline_model: str
    """MODEL of the static network of this family, which times are compared with."""

    @property
    def names(self) -> tuple[str, str, str, int, float | None]:
        """What distinguishes this run from the others of the plan."""
        return self.method, self.family, self.data, self.seed, self.budget

    @property
    def digest(self) -> str:
        """A digest of all keys that decide the result."""
        return digest_of(self.config.fingerprint())

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.config.output / self.config.experiment


@dataclass(frozen=True, slots=True)
class Plan:
    """All runs in their order: each family on each data set in turn, and there seed by seed."""

    name: str
    comparison: Comparison
    output: Path
    runs: tuple[PlannedRun, ...]

    @property
    def rows_file(self) -> Path:
        """Where the row of each finished run is."""
        return self.output / "rows.jsonl"


def read_plan(file: Path) -> Plan:
    """Read a comparison and check the keys of all its runs.

    Raises:
        InputError: the file cannot be read, a key is unknown or has an invalid value, or a name in
            `baseline`, `controls` or `curve` is not a method; names the table and the key.
    """
    comparison = _read(file)
    for key in ("controls", "curve"):
        for name in getattr(comparison, key):
            _refuse_unknown(file, key, name, comparison)
    _refuse_unknown(file, "baseline", comparison.baseline, comparison)
    _refuse_too_many(file, comparison)
    output = comparison.output or Path("runs", file.stem)
    runs = tuple(_runs(file, comparison, output))
    by_folder = {run.folder: run for run in runs}
    twin = next((run for run in runs if by_folder[run.folder] is not run), None)
    if twin is not None:
        raise InputError(
            f"two runs of {file} would share the folder {twin.folder.name}: names that differ in"
            f" signs alone, like that of {twin.method!r}, or a seed or budget that comes twice."
        )
    return Plan(file.stem, comparison, output, runs)


def remarks_on(plan: Plan) -> list[str]:
    """Return sentences about methods with a budget that they are unlikely to meet."""
    found = {
        f"method {run.method!r}: {sentence}": None
        for run in plan.runs
        for sentence in remarks_on_budget(run.config)
    }
    return list(found)


def digest_of(fingerprint: Mapping[str, Any]) -> str:
    """Return a digest of the keys of a run, the same for a row that lacks keys at their default.

    Keys that a later version added had their default before.
    """
    keys = _default_keys() | dict(fingerprint)
    return blake2b(json.dumps(keys, sort_keys=True).encode(), digest_size=8).hexdigest()


@cache
def _default_keys() -> dict[str, Any]:
    return TrainConfig.model_validate({"model": ""}).fingerprint()


def _read(file: Path) -> Comparison:
    try:
        keys = read_toml(file)
    except OSError as error:
        raise InputError(
            f"cannot read the comparison {file}: {error.strerror or error}. Give a .toml file, see"
            " docs/compare.md."
        ) from error
    try:
        return Comparison.model_validate(keys)
    except pydantic.ValidationError as error:
        raise InputError(
            "; ".join(_explain(one, file) for one in error.errors()[:MAX_TOLD]) + "."
        ) from error


def _explain(error: Any, file: Path) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, Comparison.model_fields, n=1)
        known = f"did you mean {close[0]!r}?" if close else "keys of training belong in [recipe]"
        return f"unknown key {key!r} in {file}: {known}"
    if error["type"] == "missing":
        return f"{file} has no {key}; give a table [methods.NAME] for each method"
    if error["type"] == "tuple_type":
        return f"{key} = {error['input']!r} in {file} is not a list; write {key} = [...]"
    if error["type"] == "too_short":
        return f"{key} in {file} has no valid value; give at least one"
    return f"{key} = {error['input']!r} in {file}: {error['msg']}"


def _refuse_unknown(file: Path, key: str, name: str, comparison: Comparison) -> None:
    if name not in comparison.methods:
        raise InputError(
            f"{key} in {file} names {name!r}, which is not a method. The methods are"
            f" {', '.join(map(repr, comparison.methods))}."
        )


def _refuse_too_many(file: Path, comparison: Comparison) -> None:
    tables = (comparison.families, comparison.data, comparison.seeds, comparison.methods)
    number = math.prod(map(len, tables))
    if number > MAX_RUNS:
        raise InputError(
            f"{file} plans at least {number} runs, and a comparison has at most {MAX_RUNS}. Plan"
            " fewer seeds, methods, families or data sets."
        )


def _runs(file: Path, comparison: Comparison, output: Path) -> Iterator[PlannedRun]:
    # A family on a data set is finished before the next begins: tables are whole one by one.
    for family, data, seed in product(comparison.families, comparison.data, comparison.seeds):
        base = _config(file, comparison, comparison.baseline, family, data)
        for method, table in comparison.methods.items():
            own = _config(file, comparison, method, family, data)
            budgets = table.get("budgets", comparison.budgets)
            has_paths = own.router != "none" and not own.has_method
            if not has_paths and "budgets" not in table:
                budgets = ()
            for budget in (None, *budgets):
                yield _run(
                    own.model_copy(update={"seed": seed, "budget": budget}),
                    output,
                    method=method,
                    family=family,
                    data=data,
                    baseline_model=base.model,
                )


def _run(
    config: TrainConfig, output: Path, *, method: str, family: str, data: str, baseline_model: str
) -> PlannedRun:
    config = read_config(None, config.model_dump(mode="json", exclude_defaults=True))  # checks
    parts = [method, family, data, f"seed{config.seed}"]
    parts += [] if config.budget is None else [f"budget{config.budget:g}"]
    name = "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts if part)
    experiment = f"{name[:120]}-{digest_of(config.fingerprint())}"
    return PlannedRun(
        method=method,
        family=family,
        data=data,
        seed=config.seed,
        budget=config.budget,
        config=config.model_copy(update={"output": output / "runs", "experiment": experiment}),
        baseline_model=baseline_model,
    )


def _config(file: Path, comparison: Comparison, method: str, family: str, data: str) -> TrainConfig:
    """Return the keys of a method in a family on a data set, without seed and budget."""
    table = comparison.methods[method]
    families = table.get("families", {})
    unknown = sorted(set(families) - set(comparison.families))
    if unknown:
        raise InputError(
            f"[methods.{method}.families] in {file} names {unknown[0]!r}, which is not a family."
        )
    tables = {
        "[recipe]": comparison.recipe,
        f"[data.{data}]": comparison.data[data],
        f"[families.{family}]": comparison.families[family],
        f"[methods.{method}]": {
            key: value for key, value in table.items() if key not in ("families", "budgets")
        },
        f"[methods.{method}.families.{family}]": families.get(family, {}),
    }
    merged: dict[str, Any] = {"checkpoint_steps": CHECKPOINT_STEPS, "log_interval": LOG_INTERVAL}
    for name, keys in tables.items():
        taken = next((key for key in keys if key in OWN_KEYS), None)
        if taken is not None:
            raise InputError(
                f"{taken} in {name} of {file}: a comparison sets it itself. Use seeds, budgets and"
                " output at the top of the file."
            )
        merged |= keys
    parts = {"method": method, "family": family, "data": data}
    named = (f"{part} {name!r}" for part, name in parts.items() if name)
    where = ", ".join((str(file), *named))
    try:
        config = read_config(None, merged)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if config.task == "detection" or config.objective == "distill":
        raise InputError(
            f"{where}: a comparison is about accuracy on labels, so it takes"
            " task = 'classification' and objective = 'labels' only."
        )
    return config
