"""The page of a run says the numbers of its files, needs nothing else, and bears missing numbers
and hostile names.
"""

import re
from dataclasses import replace
from html import unescape
from typing import Any

import pytest
from markup import HOSTILE, Page

from dggraph.views.training_summary import Record, write_summary

CONFIG = {
    "model": "toy:net",
    "dataset": "toy:data",
    "router": "node",
    "wiring": "complete",
    "epochs": 2,
    "budget": 0.7,
    "lr": 0.1,
}
CONFIG |= {"mean": [0.5, 0.25], "checkpoint": None, "amp": "none"}
DEFAULTS = {
    "router": "node",
    "wiring": "complete",
    "epochs": 100,
    "budget": None,
    "lr": 0.1,
    "mean": None,
    "checkpoint": None,
}
METRICS: list[dict[str, Any]] = [
    {"step": 50, "loss": 2.0, "lr": 0.1, "kept": 1.0},
    {"step": 100, "loss": 1.0, "lr": 0.2, "kept": 0.9},
    {
        "step": 100,
        "epoch": 1,
        "num_images": 2000,
        "top1": 1500,
        "top5": 1900,
        "accuracy": 0.75,
        "kept": 0.8,
    }
    | {"num_paths": 12, "path_entropy_bits": 3.25},
    {"step": 150, "loss": 0.5, "lr": 0.1, "kept": 0.7},
    {"step": 200, "loss": 0.25, "lr": 0.0, "kept": 0.7},
    {
        "step": 200,
        "epoch": 2,
        "num_images": 2000,
        "top1": 1400,
        "top5": 1800,
        "accuracy": 0.7,
        "kept": 0.72,
    }
    | {"num_paths": 1200, "path_entropy_bits": 4.5},
]
TIMING = [
    {"epoch": 0, "seconds": 10.0, "images_per_second": 500.0},
    {"epoch": 1, "seconds": 4.0, "images_per_second": 1250.0},
]
DYNAMIC = Record(
    name="run",
    config=CONFIG,
    defaults=DEFAULTS,
    environment={"torch": "2.14", "threads": 2},
    metrics=METRICS,
    timing=TIMING,
    num_unreadable=0,
)
ROUTED = ("kept", "num_paths", "path_entropy_bits")
STATIC = replace(
    DYNAMIC,
    config=CONFIG | {"router": "none", "budget": None},
    metrics=[{key: value for key, value in row.items() if key not in ROUTED} for row in METRICS],
)


def texts(html: str) -> str:
    """What a reader sees, one space between words, without the style sheet."""
    body = html[html.index("<body>") :]
    return " ".join(
        unescape(re.sub(r"<[^>]*>", " ", re.sub(r"</?bdi>|<title>.*?</title>", "", body))).split()
    )


def cells(html: str) -> list[list[str]]:
    """The table of epochs."""
    table = re.findall(r'<table class="numbers">.*?</table>', html, re.DOTALL)[0]
    return [
        [texts(f"<body>{cell}") for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
    ]


def charts(html: str) -> list[str]:
    return [unescape(told) for told in re.findall(r"<figcaption>(.*?)</figcaption>", html)]


def test_a_dynamic_run_says_its_numbers() -> None:
    html = write_summary(DYNAMIC)
    seen = texts(html)
    for told in (
        "toy:net on toy:data; node routers, complete wiring.",
        "Finished: 2 of 2 epochs, step 200.",
        "accuracy 70.0 % top 1, of 2,000 images; best 75.0 %, epoch 1",
        "MACs ratio 72.0 % of the static network's; budget 70.0 %",
        "different paths 1,200 of 2,000 images",
        "path entropy 4.50 bits",
        "training loss 0.375 mean of the 2 logged in epoch 2",
        "images a second 875 in training, median of 2 epochs",
    ):
        assert told in seen, told
    assert cells(html) == [
        [
            "epoch",
            "step",
            "accuracy",
            "top 5",
            "MACs ratio",
            "paths",
            "entropy, bits",
            "training loss",
            "images/s",
        ],
        ["1 best", "100", "75.00 %", "95.00 %", "80.00 %", "12", "3.25", "1.5000", "500"],
        ["2", "200", "70.00 %", "90.00 %", "72.00 %", "1,200", "4.50", "0.3750", "1,250"],
    ]
    assert len(charts(html)) == 6
    (kept,) = re.findall(r'aria-label="(MACs ratio[^"]*)"', html)
    assert kept.replace("\xa0", " ").endswith("training 70 %, validation 72 %")
    assert "budget 70 %" in seen


def test_a_run_without_a_budget_has_no_line_for_it() -> None:
    html = write_summary(replace(DYNAMIC, config=CONFIG | {"budget": None}))
    assert "no budget" in html
    assert 'class="target"' not in html
    assert 'class="target"' in write_summary(DYNAMIC)


def test_a_run_of_another_method_has_no_routers_and_no_paths() -> None:
    html = write_summary(replace(STATIC, config=STATIC.config | {"router": "node", "method": "se"}))
    assert charts(html) == ["Training loss", "Validation accuracy", "Learning rate"]
    assert "method <bdi>se</bdi>." in html
    assert "routers" not in texts(html)
    assert "MACs ratio" not in html


def test_a_static_run_says_nothing_of_paths() -> None:
    html = write_summary(STATIC)
    assert charts(html) == ["Training loss", "Validation accuracy", "Learning rate"]
    assert "static, without routers" in html
    assert "MACs ratio" not in html
    assert "paths" not in texts(html)
    assert cells(html)[2] == ["2", "200", "70.00 %", "90.00 %", "0.3750", "1,250"]


def test_a_run_that_stopped_half_way() -> None:
    half = write_summary(replace(DYNAMIC, metrics=METRICS[:4], timing=TIMING[:1]))
    assert "Not finished when this was written: 1 of 2 epochs, step 150." in half
    assert "mean of the 2 logged in epoch 1" in half, "not the step behind it"
    assert "accuracy 75.0 % top 1, of 2,000 images; the best epoch" in texts(half)
    assert len(cells(half)) == 2


def test_a_run_that_has_just_begun() -> None:
    for metrics in ([], METRICS[:1]):
        seen = texts(write_summary(replace(DYNAMIC, metrics=metrics, timing=[])))
        assert f"0 of 2 epochs, step {50 * len(metrics)}." in seen
        assert "No value yet." in seen
        assert "None evaluated yet." in seen


def test_keys_at_their_defaults_are_folded() -> None:
    html = write_summary(DYNAMIC)
    given, folded = re.findall(
        r'<section id="keys">(.*?)<details>(.*?)</details>', html, re.DOTALL
    )[0]
    assert re.findall(r"<bdi>(\w+)</bdi></th>", given) == [
        "model",
        "dataset",
        "epochs",
        "budget",
        "mean",
        "amp",
    ]
    assert re.findall(r"<bdi>(\w+)</bdi></th>", folded) == ["router", "wiring", "lr", "checkpoint"]
    assert "mean 0.5, 0.25" in texts(f"<body>{given}")
    assert "checkpoint none" in texts(f"<body>{folded}")
    assert "torch 2.14 threads 2" in texts(html)


def test_an_epoch_that_was_trained_twice_counts_once() -> None:
    again = {"epoch": 0, "seconds": 1.0, "images_per_second": 700.0}
    html = write_summary(replace(DYNAMIC, timing=[TIMING[0], again, TIMING[1]]))
    assert [row[-1] for row in cells(html)] == [
        "images/s",
        "700",
        "1,250",
    ]
    assert "975 in training, median of 2 epochs" in texts(html)


def test_lines_that_were_left_out_are_told() -> None:
    assert "1 line of metrics left out: not readable." in write_summary(
        replace(DYNAMIC, num_unreadable=1)
    )
    assert "left out" not in write_summary(DYNAMIC)


@pytest.mark.parametrize("damage", [None, float("nan"), float("-inf"), 10**400, "<b>", [], {}])
@pytest.mark.parametrize("key", sorted({key for row in (*METRICS, *TIMING) for key in row}))
def test_a_number_that_is_missing_leaves_the_rest(key: str, damage: object) -> None:
    rows = [row | {key: damage} if key in row else row for row in (*METRICS, *TIMING)]
    html = write_summary(replace(DYNAMIC, metrics=rows[:6], timing=rows[6:]))
    assert "nan" not in texts(html)
    assert "inf" not in texts(html)
    assert "<b>" not in html
    if key in ROUTED or key in ("accuracy", "top5", "images_per_second"):
        assert [row.count("–") for row in cells(html)] == [0, 1, 1]
    Page(html)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_stay_text(name: str) -> None:
    config = CONFIG | {
        "model": name,
        "dataset": name,
        "router": name,
        "wiring": name,
        "mean": [name],
        name: name,
    }
    html = write_summary(replace(DYNAMIC, name=name, config=config, environment={name: name}))
    page = Page(html)
    known = Page(write_summary(DYNAMIC))
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in known.tags}
    assert {key for _, attrs in page.tags for key in attrs} == {
        key for _, attrs in known.tags for key in attrs
    }
    assert "\x1b" not in html
    assert "\u202e" not in html


def test_the_page_needs_nothing_else() -> None:
    """No script, no address; the policy allows the style sheet inside alone; each picture is told
    to those who hear it.
    """
    html = write_summary(DYNAMIC)
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "script-src 'none'" in html
    assert not [
        attrs
        for _, attrs in page.tags
        if "style" in attrs or any(key.startswith("on") for key in attrs)
    ]
    assert [attrs["href"] for _, attrs in page.tags if "href" in attrs] == ["data:,"]
    assert "http" not in html.replace("http-equiv", "")
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in page.all("svg"))


def test_a_long_run_stays_a_small_page() -> None:
    """50,000 rows; written at each epoch, so also quick."""
    rows = [
        {"step": step, "loss": 1 / step, "lr": 0.1, "kept": 0.7 + step % 7 / 100}
        for step in range(1, 50_001)
    ]
    html = write_summary(replace(DYNAMIC, metrics=rows))
    assert len(html) < 60_000
    assert "the bands reach from the lowest to the highest" in html


def test_what_is_learned_from_a_static_network_is_no_accuracy() -> None:
    page = write_summary(replace(DYNAMIC, config=CONFIG | {"objective": "distill"}))
    assert "Validation agreement" in page
    assert "with the static network" in page
    assert "accuracy" not in page.lower()


def test_a_detector_is_told_by_its_precision() -> None:
    scores = [
        {
            "AP": 0.125,
            "AP50": 0.5,
            "AP75": None,
            "small": 0.25,
            "medium": 0.1,
            "large": None,
            "per_class": {"a": 0.125},
        }
    ]
    scores.append(scores[0] | {"AP": 0.0625})
    epochs = [
        row | score
        for row, score in zip(
            (row for row in STATIC.metrics if "epoch" in row), scores, strict=True
        )
    ]
    epochs = [
        {key: value for key, value in row.items() if key not in ("accuracy", "top1", "top5")}
        | {"kept": 0.9}
        for row in epochs
    ]
    steps = [row for row in DYNAMIC.metrics if "epoch" not in row]
    html = write_summary(
        replace(
            DYNAMIC,
            config=CONFIG | {"task": "detection"},
            metrics=[*steps[:2], epochs[0], *steps[2:], epochs[1]],
        )
    )
    assert (
        "AP 6.2 % mean over overlaps from 0.50 to 0.95, of 2,000 images; best 12.5 %, epoch 1"
        in texts(html)
    )
    assert "AP50 50.0 % at an overlap of 0.50, of 2,000 images" in texts(html)
    assert charts(html) == [
        "Training loss",
        "Validation AP",
        "Learning rate",
        "MACs ratio",
    ]
    heads, first, second = cells(html)
    assert heads == [
        "epoch",
        "step",
        "AP",
        *("AP50", "AP75", "small", "medium", "large"),
        "MACs ratio",
        "training loss",
        "images/s",
    ]
    assert first[:8] == ["1 best", "100", "12.50 %", "50.00 %", "–", "25.00 %", "10.00 %", "–"]
    assert second[2] == "6.25 %"
    assert "accuracy" not in texts(html).partition("Configuration")[0]
    assert "paths" not in heads
