"""docs/benchmarks/gpu.md from the JSON that benchmarks/gpu.py wrote."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEAD = "# How fast is it on a GPU?\n"
TAIL = """
## How to repeat it

```
python benchmarks/gpu.py           # one NVIDIA GPU, under eight minutes: gpu.json
python benchmarks/gpu.py --page    # this page, from gpu.json
```

Times are medians of paired, interleaved rounds between CUDA events, as ratios over the static
backbone. Both sides are channels last. Paths are random: 16 of them, repeated over the batch.
"""
NOT_RUN = """
**It has not run on a GPU yet.** The kernels compile ahead of time for compute capability 8.0 and
9.0, and spill 8 bytes at most. Their values are checked in Triton's interpreter. Their speed has
not been measured: the table appears here once `benchmarks/gpu.py` has run.
"""


def write_page(source: Path, page: Path) -> None:
    """Write the page; without a JSON file it says that nothing has run."""
    found = json.loads(source.read_text(encoding="utf-8")) if source.exists() else None
    page.write_text(page_of(found), encoding="utf-8")


def page_of(found: dict[str, Any] | None) -> str:
    """Return the page.

    Args:
        found: What `benchmarks/gpu.py` wrote, or None if it has not run.

    Raises:
        ValueError: It is from a smoke run, whose times mean nothing.
    """
    if found is None:
        return HEAD + NOT_RUN + TAIL
    if found["is_smoke"]:
        raise ValueError(
            "times of a smoke run on the CPU mean nothing; run benchmarks/gpu.py on a GPU"
        )
    return HEAD + tables(found) + TAIL


def tables(found: dict[str, Any]) -> str:
    """Return the machine, the four tables, and what was left out."""
    machine = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    parts = [
        f"\nOn {machine}; {found['seconds']:.0f} seconds in all. Tests of the kernels:"
        f" {found['tests']['result']}.\n",
        "## Aggregation, as a share of copy bandwidth\n",
        _aggregation(found["aggregation"]),
        "## A training step over the static backbone's, every edge open\n",
        _training(found["training"]),
        "## Inference over the static backbone\n",
        "`fresh` is the network as converted; then random paths at about .5, .75 and 1 of the"
        " MACs (the ratio reached in brackets), masked and sparse.\n",
        _inference(found["inference"]),
    ]
    if found["left out"]:
        parts.append(f"No time was left for: {'; '.join(found['left out'])}.\n")
    return "\n".join(parts)


def _aggregation(rows: Sequence[dict[str, Any]]) -> str:
    names = ["sum", "sum, half open", "pull", "inner products", "sum, plain torch"]
    return _table(
        ["", "copy, GB/s", *names],
        [
            [row["case"], f"{row['copy GB/s']:.0f}", *[f"{row[name]:.2f}" for name in names]]
            for row in rows
        ],
    )


def _training(rows: Sequence[dict[str, Any]]) -> str:
    return _table(
        ["", "batch", "how", "static, ms", "dggraph", "SE"],
        [
            [
                row["network"],
                str(row["batch"]),
                row["how"],
                f"{row['static']['ms']:.1f}",
                _ratio(row.get("dggraph")),
                _ratio(row.get("SE")),
            ]
            for row in rows
        ],
    )


def _inference(rows: Sequence[dict[str, Any]]) -> str:
    kept = ["0.5", "0.75", "1.0"]
    return _table(
        ["", "dtype", "batch", "static, ms", "SE", "fresh"]
        + [f"{share}, {how}" for share in kept for how in ("masked", "sparse")],
        [
            [row["network"], row["dtype"], str(row["batch"]), f"{row['static']['ms']:.2f}"]
            + [_ratio(row.get("SE")), _ratio(row["fresh"])]
            + [text for share in kept for text in _masked_and_sparse(row.get(share))]
            for row in rows
        ],
    )


def _masked_and_sparse(found: dict[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "-", "-"
    return _ratio(found["masked"]), f"{_ratio(found['sparse'])} ({found['MACs ratio']:.2f})"


def _ratio(timing: dict[str, float] | None) -> str:
    """Return the ratio, with `?` if its quartiles lie more than a tenth of it apart."""
    if timing is None:
        return "-"
    is_reliable = timing["high"] - timing["low"] <= 0.1 * timing["ratio"]
    return f"{timing['ratio']:.2f}{'' if is_reliable else '?'}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
