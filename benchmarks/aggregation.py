"""Aggregation against the memory bandwidth, and a whole stage in pull form against the naive
expression.

    python benchmarks/aggregation.py [--rounds 15]

1. Forward: n sources of 16x1024x14x14 float32, all edges open. Limit: n reads and 1 write at the
   bandwidth of a plain copy of 200 MB.
2. Stage: N blocks (a scaled tanh each, so that aggregation is what costs), complete wiring, forward
   and backward; time over the naive expression's, and peak memory in stage-sized tensors.

C++ kernels are used where they are built; DGGRAPH_KERNELS=0 turns them off. glibc gives memory back
to the system and takes it again for every large tensor; MALLOC_TRIM_THRESHOLD_ and
MALLOC_MMAP_THRESHOLD_ in the environment (say 4000000000) show the arithmetic alone.
"""

import argparse
import statistics
import time

import torch
from memory import peak_bytes
from torch import Tensor

import dggraph
from dggraph.evaluation.timing import compare
from dggraph.ops import kernels
from dggraph.ops.aggregation import aggregate, plain_aggregation, share
from dggraph.ops.rows import sum_rows
from dggraph.ops.stage_cache import stage_cache

SHAPE = (16, 1024, 14, 14)


def copy_bandwidth() -> float:
    """Bytes a second, one read and one write counted for every byte copied."""
    source = torch.ones(50_000_000)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(15):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(seconds)


def forward(num_sources: int, rounds: int) -> None:
    features = [torch.randn(SHAPE) for _ in range(num_sources)]
    table = (torch.rand(SHAPE[0], num_sources) + 0.1).numpy()
    ratios = []
    for _ in range(rounds + 2):
        limit = (num_sources + 1) * features[0].nbytes / copy_bandwidth_now()
        start = time.perf_counter()
        sum_rows(features, None, table, may_alias=False)
        ratios.append((time.perf_counter() - start) / limit)
    low, median, high = statistics.quantiles(ratios[2:], n=4)
    print(f"forward, n = {num_sources:2}: {median:.2f} of the limit ({low:.2f} to {high:.2f})")


_buffers = (torch.ones(25_000_000), torch.empty(25_000_000))


def copy_bandwidth_now() -> float:
    """The same from one copy, for pairing with what is timed next."""
    start = time.perf_counter()
    _buffers[1].copy_(_buffers[0])
    return 2 * _buffers[0].nbytes / (time.perf_counter() - start)


def run_stage(x: Tensor, weights: list[Tensor]) -> Tensor:
    """v0 = x, v_j = 0.9 * (sum over all earlier nodes), out the same without a block."""
    cache = stage_cache()
    shared = [share(x, cache, 0)]
    for target, weights_BE in enumerate(weights, start=1):
        z = aggregate(shared, weights_BE, cache, tuple(range(len(shared))), target)
        if target < len(weights):
            shared.append(share(z * 0.9, cache, target))
    return z


def stage(num_blocks: int, rounds: int) -> None:
    x = torch.randn(SHAPE[0], 256, 14, 14, requires_grad=True)
    weights = [(torch.rand(SHAPE[0], j) + 0.1).requires_grad_() for j in range(1, num_blocks + 2)]
    grad = torch.randn(x.shape)

    def pull() -> None:
        torch.autograd.backward(run_stage(x, weights), grad)

    def naive() -> None:
        with plain_aggregation():
            torch.autograd.backward(run_stage(x, weights), grad)

    timing = compare(naive, {"pull": pull}, rounds=rounds)[1]
    peaks = [peak_bytes(function) / x.nbytes for function in (naive, pull)]
    print(
        f"stage, N = {num_blocks:2}: pull over naive {timing.ratio:.2f} ({timing.low:.2f} to"
        f" {timing.high:.2f}{'' if timing.is_reliable else ', unreliable'}); peak in stage-sized"
        f" tensors: naive {peaks[0]:.1f}, pull {peaks[1]:.1f}"
    )


if __name__ == "__main__":
    dggraph.keep_freed_memory()  # for both sides
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    how = "C++ kernels" if kernels.load() else "plain torch"
    print(
        f"{torch.get_num_threads()} threads, {how}, copy bandwidth {copy_bandwidth() / 1e9:.1f}"
        " GB/s"
    )
    for number in (4, 16):
        forward(number, arguments.rounds)
    for number in (4, 8, 16):
        stage(number, arguments.rounds)
