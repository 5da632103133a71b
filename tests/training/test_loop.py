"""Training: an interrupted run ends where an uninterrupted one does, byte for byte; what must not
be stepped with is not.
"""

import json
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from toy_runs import FILES, contents, keys, stop_after

import dggraph
from dggraph.errors import CheckpointError, InputError, TrainingError
from dggraph.training import loop, steps
from dggraph.training.checkpoint import list_checkpoints, load_checkpoint
from dggraph.training.loop import train


def test_a_run_learns_and_ends_with_an_archive(tmp_path: Path) -> None:
    rows: list[Any] = []
    result = train(
        keys(tmp_path, epochs=4, mixup=0.0, model_ema=False, budget_weight=1.0), rows.append
    )
    assert result.is_finished
    assert result.step == 36
    assert result.evaluation is not None
    assert result.evaluation.accuracy > 0.6
    assert result.evaluation.num_images == 40
    assert sum(result.evaluation.class_images) == 40
    assert sum(result.evaluation.class_top1) == result.evaluation.top1
    net = dggraph.load(result.folder / "archive")
    assert net.labels == ("a", "b", "c", "d")
    assert float(net.lowered.get_buffer("dg_layer1.threshold")) == 0.5
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 36
    assert sum(losses[-9:]) < sum(losses[:9])


def test_an_epoch_may_have_fewer_steps(tmp_path: Path) -> None:
    rows: list[Any] = []
    result = train(keys(tmp_path / "short", epochs=3, epoch_steps=4), rows.append)
    assert result.step == 12
    assert [row["step"] for row in rows if "epoch" in row] == [4, 8, 12]
    with pytest.raises(InputError, match="epoch_steps = 10, but the training set has only 9"):
        train(keys(tmp_path / "long", epoch_steps=10))


@pytest.mark.parametrize(("warmup", "is_noted"), [(5, True), (1, True), (0.5, False)])
def test_a_warmup_as_long_as_the_run_is_noted(
    tmp_path: Path, warmup: float, is_noted: bool
) -> None:
    rows: list[Any] = []
    train(keys(tmp_path, epochs=1, warmup_epochs=warmup, model_ema=False), rows.append)
    notes = [row["note"] for row in rows if "note" in row]
    said = f"warm-up takes {warmup} epochs and the run 1, so the learning rate only rises, to"
    assert any(f"{said} {1 / warmup:.0%} of lr = 0.05" in note for note in notes) == is_noted
    rates = [row["lr"] for row in rows if "lr" in row]
    assert (max(rates) == rates[-1]) == is_noted


@pytest.mark.filterwarnings(
    "ignore:.*fork.*:DeprecationWarning"
)  # Python 3.12 warns of torch's threads
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_was_stopped_anywhere_ends_as_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    whole = train(keys(tmp_path / "whole"))
    stop_after(monkeypatch, 3, 9, 10, 17)
    config = keys(tmp_path / "parts", workers=workers)
    steps = []
    while not (result := train(config)).is_finished:
        steps.append(result.step)
    assert steps == [3, 9, 10, 17]
    assert contents(result.folder) == contents(whole.folder)


KILLED = """
import os, random, signal, sys
from pathlib import Path
import torch
from torch import nn
torch.set_num_threads(int(sys.argv[3]))
from dggraph.system import files
from dggraph.training import loop, steps
from dggraph.training.config import TrainConfig

left = [int(sys.argv[2])]
write, step = files.write_synced, loop.take_step

def count(half=None):
    left[0] -= 1
    if left[0] == 0:
        if half is not None:
            half()
        os.kill(os.getpid(), signal.SIGKILL)

def writing(file, content):
    if file.parent.name == 'new':  # of a checkpoint
        count(lambda: file.write_bytes(content[: len(content) // 2]))
    write(file, content)

def stepping(*args):
    count()
    return step(*args)

files.write_synced, loop.take_step = writing, stepping
loop.train(TrainConfig.model_validate_json(Path(sys.argv[1]).read_text()))
"""


def run_killed(file: Path, event: int) -> int:
    """Train in a process that kills itself at its `event`-th step or file of a checkpoint, half of
    which is written then.
    """
    arguments = [str(file), str(event), str(torch.get_num_threads())]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "helpers")}
    return subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], env=environment, check=False
    ).returncode


def test_a_killed_process_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    whole = train(keys(tmp_path / "whole"))
    file = tmp_path / "keys.json"
    file.write_text(keys(tmp_path / "parts").model_dump_json())
    assert [run_killed(file, event) for event in (14, 3, 1000)] == [-9, -9, 0]
    assert contents(tmp_path / "parts" / "run") == contents(whole.folder)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_twenty_kills_change_nothing(tmp_path: Path, workers: int) -> None:
    whole = train(keys(tmp_path / "whole"))
    file = tmp_path / "keys.json"
    file.write_text(keys(tmp_path / "parts", workers=workers, checkpoint_steps=1).model_dump_json())
    chance = random.Random(workers)
    kills = 0
    while run_killed(file, chance.randint(1, 8) if kills < 40 else 1000) == -9:
        kills += 1
    assert kills >= 20
    assert contents(tmp_path / "parts" / "run") == contents(whole.folder)


def test_a_run_with_other_keys_is_refused(tmp_path: Path) -> None:
    train(keys(tmp_path, epochs=1))
    with pytest.raises(CheckpointError, match=r"other epochs, lr"):
        train(keys(tmp_path, epochs=2, lr=0.1))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["lr"] == 0.05, (
        "what is there still says what it is"
    )


def test_a_loss_that_is_not_finite_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, list[torch.Tensor]]] = []
    real = loop.take_step

    def step(run: Any, config: Any, task: Any, batch: Any, total: int) -> Any:
        if run.step == 5:
            seen.append((run, [parameter.detach().clone() for parameter in run.model.parameters()]))
            batch = [batch[0] * torch.inf, batch[1]]
        return real(run, config, task, batch, total)

    monkeypatch.setattr(loop, "take_step", step)
    with pytest.raises(TrainingError, match="the loss of step 5 is nan"):
        train(keys(tmp_path))
    ((run, before),) = seen
    assert all(
        torch.equal(one, other) for one, other in zip(run.model.parameters(), before, strict=True)
    )
    assert [int(entry.name) for entry in list_checkpoints(tmp_path / "run" / "checkpoints")] == [4]


@pytest.mark.parametrize("step", [3, 5, 8, 17])
def test_a_loss_read_a_step_late_never_reaches_weights_or_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """As on a GPU: before a checkpoint (3), an evaluation (8, 17), and in between (5)."""
    runs: list[Any] = []
    real = loop.take_step

    def broken(run: Any, config: Any, task: Any, batch: Any, total: int) -> Any:
        runs.append(run)
        if run.step == step:
            batch = [batch[0] * torch.inf, batch[1]]
        return real(run, config, task, batch, total)

    monkeypatch.setattr(steps, "reads_later", lambda device: True)
    monkeypatch.setattr(loop, "take_step", broken)
    with pytest.raises(TrainingError, match=f"the loss of step {step} is nan"):
        train(keys(tmp_path, log_interval=100, clip_grad=0.5))
    assert all(parameter.isfinite().all() for parameter in runs[-1].model.parameters())
    saved = [int(entry.name) for entry in list_checkpoints(tmp_path / "run" / "checkpoints")]
    assert all(one <= step for one in saved)
    assert bool(saved) == (step > 3)
    monkeypatch.setattr(loop, "take_step", real)
    assert train(keys(tmp_path, log_interval=100, clip_grad=0.5)).is_finished


def test_steps_read_late_are_the_same_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(keys(tmp_path / "now", epochs=1))
    monkeypatch.setattr(steps, "reads_later", lambda device: True)
    train(keys(tmp_path / "late", epochs=1))
    name = "checkpoints/00000009/model.safetensors"
    now, late = ((tmp_path / one / "run" / name).read_bytes() for one in ("now", "late"))
    assert now == late


def test_sums_computed_again_give_the_same_steps(tmp_path: Path) -> None:
    """And a run may go on with or without."""
    train(keys(tmp_path / "kept", epochs=1))
    result = train(keys(tmp_path / "again", epochs=1, recompute=True))
    name = "checkpoints/00000009/model.safetensors"
    kept, again = ((tmp_path / one / "run" / name).read_bytes() for one in ("kept", "again"))
    assert kept == again
    assert train(keys(tmp_path / "again", epochs=1)).step == result.step
    for others, match in (
        ({"router": "none", "budget": None}, "recompute = True"),
        ({"torchcompile": True}, "plans its own"),
    ):
        with pytest.raises(InputError, match=match):
            train(keys(tmp_path / "no", recompute=True, **others))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_run_stops_resumes_and_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """With an average, a budget and a rising threshold: one graph, never compiled again."""
    monkeypatch.setattr(loop.torch, "compile", partial(torch.compile, backend=backend))

    def count(name: str) -> int:
        return sum(counters[name].values())

    torch.compiler.reset()
    counters.clear()
    eager: list[Any] = []
    compiled: list[Any] = []
    train(keys(tmp_path / "eager", epochs=1), eager.append)
    whole = train(keys(tmp_path / "whole", epochs=1, torchcompile=True), compiled.append)
    assert counters["stats"]["unique_graphs"] == 1
    assert not count("graph_break")
    assert not count("recompile_limit")
    stop_after(monkeypatch, 5)
    parts = keys(tmp_path / "parts", epochs=1, torchcompile=True)
    assert not train(parts).is_finished
    result = train(parts)
    files = tuple(name.replace("18", "09") for name in FILES)
    assert contents(result.folder, files) == contents(whole.folder, files)
    losses = [[row["loss"] for row in rows if "loss" in row][:4] for rows in (eager, compiled)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert dggraph.load(result.folder / "archive").graph is not None


def test_the_static_backbone_trains_by_the_same_recipe(tmp_path: Path) -> None:
    result = train(keys(tmp_path, router="none", budget=None, epochs=1))
    assert result.evaluation is not None
    assert result.evaluation.kept is None
    assert (result.folder / "backbone.safetensors").is_file()


def test_gradients_of_parts_add_up(tmp_path: Path) -> None:
    """Without batch norm's coupling (eval statistics), two parts of a batch step as one."""
    one = train(keys(tmp_path / "one", epochs=1, mixup=0.0, model="toy_data:plain_net"))
    two = train(
        keys(tmp_path / "two", epochs=1, mixup=0.0, model="toy_data:plain_net", grad_accum_steps=2)
    )
    assert one.evaluation is not None
    assert two.evaluation is not None
    first, second = (
        load_checkpoint(list_checkpoints(result.folder / "checkpoints")[-1]).tensors["model"]
        for result in (one, two)
    )
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-3, atol=1e-5)


def test_too_few_images_for_a_batch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="72 images, fewer than one batch of 100"):
        train(keys(tmp_path, batch_size=100))


def test_one_process_has_nothing_to_share(tmp_path: Path) -> None:
    for parallel in ("ddp", "fsdp"):
        train(keys(tmp_path, parallel=parallel, experiment=parallel))
    names = [name for name in FILES if not name.endswith("state.json")]
    whole, shared = (
        contents(tmp_path / name, (*names, "metrics.jsonl")) for name in ("ddp", "fsdp")
    )
    assert len(names) > 1
    assert whole == shared


def test_an_average_keeps_whole_numbers_whole() -> None:
    """Counts, and the places that held edges follow, are copied: 3 * 0.9 + 3 * 0.1 is just below 3,
    and cut it would be 2.
    """
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2))
    model.register_buffer("places", torch.arange(-1, 9))
    average = loop._average(model, 0.9)
    for _ in range(20):
        average.update_parameters(model)
    assert torch.equal(average.module.places, model.places)  # type: ignore[arg-type]
