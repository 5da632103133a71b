"""`dggraph bench`: rows that fit together, plain words at the end, sets that cannot be timed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from PIL import Image

import dggraph
from dggraph.cli.bench_images import verdict
from dggraph.compiler.lowered import routing_of
from dggraph.ops.stage_costs import WAYS

NAME = "dggraph:resnet8_4"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a set of five images, one of a single image, and a broken one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for folder, count in (("photos", 5), ("one", 1), ("bad", 2), ("empty", 0)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            noise = Image.effect_noise((40, 30), 30 + 40 * number).convert("RGB")
            noise.save(tmp_path / folder / f"{number}.png")
    (tmp_path / "bad" / "x[b].png").write_bytes(b"none")
    return tmp_path


def bench(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    return run(capsys, "bench", NAME, "--rounds", "3", *arguments)


def test_images_are_timed_in_both_forms(place: Path, capsys: Any) -> None:
    code, out, _ = bench(
        capsys, "--images", "photos", "--batch", "2", "--batch", "1", "--batch", "9", "--json"
    )
    assert code == 0
    found = json.loads(out)
    assert found["images"] == {"name": "photos", "num_images": 5, "num_timed": 5}
    assert found["notes"] == ["batch 9 is left out, because the set gives 5 images"]
    sizes = [(row["batch_size"], row["form"]) for row in found["rows"]]
    assert sizes == [(1, "plain"), (1, "optimised"), (2, "plain"), (2, "optimised")]
    assert len(found["paths"]["kept"]) == 5
    assert found["kept"] == pytest.approx(sum(found["paths"]["kept"]) / 5)
    assert set(found["paths"]["shared"].values()) == {1.0}  # untrained routers: one path
    for row in found["rows"]:
        assert row["executor"] == "sparse"
        assert list(row["speeds"]) == ["static", "inlined", "dynamic"]
        assert row["speeds"]["static"]["ratio"] == 1
    assert found["verdict"] == verdict(found["rows"])


def test_what_is_printed_fits_a_narrow_terminal(place: Path, capsys: Any) -> None:
    code, out, _ = bench(capsys, "--images", "photos", "--batch", "1", "--clock", "cpu")
    assert code == 0
    table = out[out.index("images/s") : out.index("over static:")]
    assert "…" not in table
    assert [line.split()[0] for line in table.splitlines()[2:] if line.strip()] == [
        *("batch", "static", "static,", "dynamic") * 2
    ]
    assert "No image skips work" in out
    assert out.splitlines()[-1].startswith("It ")


def test_the_choice_of_ways_is_judged(
    place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a router a stage and images of several paths, each way is forced once."""
    net = dggraph.convert("dggraph:resnet20_8", router="stage")
    with torch.no_grad():
        for stage in net.graph.stages:
            for parameter in routing_of(net.lowered, stage).parameters():
                parameter.normal_(std=2.0)
    monkeypatch.setattr("dggraph.cli.bench.open_network", lambda *_, **__: net)
    code, out, _ = bench(capsys, "--images", "photos", "--batch", "1", "--batch", "5", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["paths"]["num_paths"] > 1
    assert [list(row["ways"]) for row in found["rows"]] == [[], [], [*WAYS], [*WAYS]]
    for row in found["rows"]:
        assert bool(row["chosen"]) == (row["batch_size"] > 1)
        assert row["regret"] == max(0.0, 1 - min(row["ways"].values(), default=1.0))
        assert set(row["plans"]) == set(net.graph.stages)
        assert all(one["num_patterns"] > 1 for one in row["plans"].values())
    code, out, _ = bench(capsys, "--images", "photos", "--batch", "5")
    assert code == 0
    assert "for stages in which images differ, the cost model chose groups " in out
    assert "; regret " in out
    assert re.search(r"plans kept, optimised: \d+ patterns in 3 stages, [\d.]+ KB", out)


def test_without_images_paths_are_random(place: Path, capsys: Any) -> None:
    code, out, _ = bench(capsys, "--batch", "1", "--kept", "1")
    assert code == 0
    assert "Paths are random; --images FOLDER times those of your own images." in out
    code, out, _ = run(
        capsys, "bench", "dggraph:resnet20_8", "--batch", "1", "--rounds", "3", "--json"
    )
    kept = [row["kept"] for row in json.loads(out)["rows"]]
    assert kept == pytest.approx([0.5, 0.75, 1.0], abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--images", "empty"], 4, "'empty' has no images"),
        (["--images", "none"], 4, "'none' is neither a folder nor a file"),
        (["--images", "bad"], 4, "x[b].png' is not an image that can be read"),
        (["--images", "bad"], 4, "With --on-bad-image skip, it is left out."),
        (
            ["--images", "one", "--batch", "16"],
            4,
            "'one' gives 1 image, fewer than the smallest batch, 16.",
        ),
        (["--images", "photos", "--limit", "1", "--batch", "4"], 4, "a larger --limit"),
        (["--images", "photos", "--kept", "0.5"], 2, "--kept is for random paths"),
        (["--limit", "3"], 2, "--limit and --on-bad-image go with --images"),
        (["--images", "photos", "--rounds", "2"], 2, "'--rounds'"),
    ],
)
def test_what_cannot_be_timed_is_named(
    place: Path, capsys: Any, arguments: list[str], code: int, message: str
) -> None:
    found, _, err = bench(capsys, *arguments)
    assert found == code
    assert message in err


def test_a_bad_image_can_be_left_out(place: Path, capsys: Any) -> None:
    code, out, _ = bench(
        capsys, "--images", "bad", "--batch", "1", "--on-bad-image", "skip", "--json"
    )
    assert code == 0
    (note,) = json.loads(out)["notes"]
    assert note.startswith("left out, because it cannot be read: 'bad/x[b].png'")
    assert json.loads(out)["images"]["num_timed"] == 2


def rows(size: int, *speeds: tuple[float, float, float]) -> list[dict[str, Any]]:
    return [
        {
            "batch_size": size,
            "speeds": {"dynamic": {"low": low, "ratio": ratio, "high": high}},
        }
        for low, ratio, high in speeds
    ]


def test_the_verdict_in_plain_words() -> None:
    pays, loses, unclear = (0.8, 0.82, 0.85), (1.04, 1.06, 1.1), (0.95, 0.99, 1.03)
    assert verdict([*rows(1, pays, pays), *rows(16, loses, loses)]) == (
        "It pays for a single image: 0.82 of the static time, and 0.82 with both prepared for"
        " inference."
        " It does not pay for a batch of 16: 1.06 of the static time, and 1.06 with both prepared"
        " for inference."
    )
    assert verdict(rows(4, pays, loses)) == (
        "It pays for a batch of 4: 0.82 of the static time. With both prepared for inference it"
        " does not pay: 1.06."
    )
    assert verdict(rows(1, unclear, pays)) == (
        "It makes no clear difference for a single image: 0.99 of the static time. With both"
        " prepared for inference it pays: 0.82."
    )
