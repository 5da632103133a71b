"""Every misuse of several processes ends with one clear message and our exit code, never with a
hang; `launched.py` runs them.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from toy_data import plain_net

import dggraph
from dggraph.cli.main import main
from dggraph.training.checkpoint import list_checkpoints

HELPERS = Path(__file__).parents[1] / "helpers"
ASSETS = Path(dggraph.__file__).parent / "assets"


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `launched.py` saw, by name of the misuse, and the folder of its runs."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(ASSETS / "samples", folder / "photos")
    whole = (folder / "photos" / "sandal-0.png").read_bytes()
    (folder / "photos" / "sandal-0.png").write_bytes(whole[: len(whole) // 2])
    environment = {
        **os.environ,
        "PYTHONPATH": str(HELPERS),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    done = subprocess.run(
        [sys.executable, str(HELPERS / "launched.py"), str(folder)],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {one["name"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert all(one["seconds"] < 25 for one in found.values()), (
        "torchrun kills what does not end after 30 seconds"
    )
    return found | {"folder": folder}


@pytest.mark.parametrize(
    ("name", "message", "codes"),
    [
        (
            "same",
            "the training set has 72 images, fewer than one batch of 50 on each of 2 processes",
            {4},
        ),
        ("unreadable", "cannot read the image 'roses/7.png'.", {4}),
        ("infinite", "the loss of step 6 is nan, so no step was taken with it", {4}),
        ("killed", "another process of this run ended or was killed", {-9, 4}),
        (
            "uneven",
            "differ in images of the two sets: (72, 40) on process 0, (80, 40) on process 1",
            {4},
        ),
        ("missing", "there is no folder /data/flowers.", {4}),
        ("occupied", "killed is being written by another run, process ", {4}),
        ("untrained", "differ in network", {4}),
        ("atlas-bad", "sandal-0.png", {4}),
        ("fsdp-infinite", "the loss of step 6 is nan, so no step was taken with it", {4}),
        (
            "ddp-then-fsdp",
            "ddp has a run with other parallel. Continue with those, or choose another experiment",
            {4},
        ),
        (
            "fsdp-then-ddp",
            "fsdp has a run with other parallel. Continue with those, or choose another experiment",
            {4},
        ),
        (
            "torchcompile",
            (
                "torchcompile does not work with parallel = 'fsdp': the hooks that gather the"
                " weights would break the compiled graph. Leave it out"
            ),
            {4},
        ),
        (
            "channels_last",
            (
                "channels_last does not work with parallel = 'fsdp': weights are sharded in"
                " contiguous layout. Leave it out, or choose"
            ),
            {4},
        ),
        (
            "opt",
            "opt = 'adamp' does not work with parallel = 'fsdp': it may need complete weights",
            {4},
        ),
        ("fewer", "has a run with other number of processes", {4}),
    ],
)
def test_one_message_says_what_is_wrong(
    launches: dict[str, Any], name: str, message: str, codes: set[int]
) -> None:
    """Also where one process alone has an error and the other only loses its partner."""
    (said,) = launches[name]["said"]
    assert said.startswith("dggraph: ")
    assert message in said
    ends = set(launches[name]["codes"].values())
    assert ends
    assert ends <= codes | {-15}, "-15: torchrun has ended the other"


def test_one_json_document_for_all(launches: dict[str, Any]) -> None:
    (said,) = launches["json"]["said"]
    assert json.loads(said)["error"]["type"] == "InputError"


def test_what_was_saved_before_holds(launches: dict[str, Any]) -> None:
    for name in ("unreadable", "infinite", "killed", "fsdp-infinite"):
        (checkpoint,) = list_checkpoints(launches["folder"] / name / "checkpoints")
        assert int(checkpoint.name) == 4, "of the first epoch"
    assert launches["occupied"]["codes"], (
        "a killed process's lock is free again, and then held by another one"
    )


def test_a_signal_to_torchrun_stops_all_behind_a_checkpoint(launches: dict[str, Any]) -> None:
    assert launches["stopped"]["codes"] == {"torchrun": 15}
    assert [said.partition(":")[0] for said in launches["stopped"]["said"]] == [
        "stopped; the same call goes on"
    ]
    assert [said.partition(":")[0] for said in launches["continued"]["said"]] == ["finished"]
    assert not launches["continued"]["codes"]
    rows = rows_of(launches["folder"] / "stopped")
    assert [row["epoch"] for row in rows if "epoch" in row] == [1, 2, 3]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def last_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of the last checkpoint and the archive, by `<part>.<name>`."""
    last = list_checkpoints(folder / "checkpoints")[-1]
    files = [
        *(last / f"{part}.safetensors" for part in ("model", "average", "optimiser")),
        folder / "archive" / "model.safetensors",
    ]
    named = ((file, safetensors.torch.load_file(file)) for file in files)
    return {
        f"{file.parent.name}.{file.stem}.{name}": tensor
        for file, tensors in named
        for name, tensor in tensors.items()
    }


def test_shares_of_weights_learn_what_whole_ones_do(launches: dict[str, Any]) -> None:
    """With routers, accumulation, clipping and an average; only sums over the processes are taken
    in another order.
    """
    whole, shared = (launches["folder"] / name for name in ("ddp", "fsdp"))
    torch.testing.assert_close(last_tensors(shared), last_tensors(whole), rtol=0, atol=1e-6)
    judged, expected = (
        [row for row in rows_of(folder) if "epoch" in row] for folder in (shared, whole)
    )
    for key in ("accuracy", "top1", "num_paths"):
        assert [row[key] for row in judged] == [row[key] for row in expected]
    assert len(judged) == 4
    assert min(row["num_paths"] for row in judged) > 2, (
        "paths must differ, or this test says little"
    )
    assert len({row["kept"] for row in rows_of(shared) if "loss" in row}) > 8, "in training too"


def test_shares_of_weights_learn_around_those_that_are_held(launches: dict[str, Any]) -> None:
    """Distillation with `tune = "routers"`: the rest has no gradients to share, and stays as it was
    to the bit.
    """
    whole, shared = (
        last_tensors(launches["folder"] / f"{name}-frozen") for name in ("ddp", "fsdp")
    )
    torch.testing.assert_close(shared, whole, rtol=0, atol=1e-6)
    torch.manual_seed(0)
    start = plain_net().state_dict()
    learned = {
        name.partition(".model.")[2]: tensor
        for name, tensor in shared.items()
        if name.startswith("archive.")
    }
    assert start.items()
    assert all(torch.equal(learned[name], tensor) for name, tensor in start.items())
    routers = [tensor for name, tensor in learned.items() if ".router_" in name]
    assert routers
    assert all(bool(tensor.any()) for tensor in routers), "which start at zero"


def test_shares_of_weights_go_on_where_they_stopped(launches: dict[str, Any]) -> None:
    """Archive, last checkpoint and metrics to the byte."""
    assert launches["fsdp-stopped"]["codes"] == {"torchrun": 15}
    assert not launches["fsdp-continued"]["codes"]
    stopped, whole = (launches["folder"] / name for name in ("fsdp-stopped", "fsdp-whole"))
    last = list_checkpoints(whole / "checkpoints")[-1]
    written = [
        file
        for folder in (last, whole / "archive")
        for file in folder.iterdir()
        if file.name != "state.json"
    ]
    assert len(written) == 6
    for file in (*written, whole / "metrics.jsonl"):
        assert (stopped / file.relative_to(whole)).read_bytes() == file.read_bytes(), file.name


def test_detectors_in_shares_learn_what_whole_ones_do(launches: dict[str, Any]) -> None:
    """Also the precision that all processes measured together."""
    whole, shared = (launches["folder"] / f"boxes-{parallel}" for parallel in ("ddp", "fsdp"))
    expected, found = (
        safetensors.torch.load_file(folder / "detector.safetensors") for folder in (whole, shared)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    judged, again = (
        [row for row in rows_of(folder) if "epoch" in row] for folder in (whole, shared)
    )
    assert judged[0]["num_images"] == 6
    assert judged[0]["AP50"] == pytest.approx(again[0]["AP50"])
    assert len(rows_of(whole)) == 7


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As torchrun's processes have, so that sums of floats are the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_an_atlas_is_the_same_for_any_number_of_processes(
    launches: dict[str, Any], tmp_path: Path
) -> None:
    """To the byte; also where two processes stopped at a bad image, and one goes on from there."""
    folder = launches["folder"]
    atlas = [
        "atlas",
        str(ASSETS / "fashion_mnist"),
        str(folder / "photos"),
        "--instances=4",
        "--on-bad-image=skip",
        "-o",
    ]
    assert (folder / "bad.state").is_file()
    for output in (tmp_path / "one.html", folder / "bad.html"):
        with pytest.raises(SystemExit) as ended:
            main([*atlas, str(output)])
        assert ended.value.code == 0
    for suffix in (".html", ".json"):
        expected = (tmp_path / "one.html").with_suffix(suffix).read_bytes()
        assert b"sandal-0" in expected
        for name in ("two", "three", "bad"):
            assert (folder / name).with_suffix(suffix).read_bytes() == expected, name
    assert json.loads((tmp_path / "one.json").read_text())["paths"]["num"] > 2, (
        "paths must differ, or this test says little"
    )
    assert len(launches["atlas-two"]["said"]) == 1, "one process reports"


def test_without_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["train", "--model", "toy_data:plain_net"])
    assert ended.value.code == 4
    assert "WORLD_SIZE expected, but not set. Start them with torchrun" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before, (
        "a process that has spoken can be ended again"
    )
