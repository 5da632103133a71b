"""Are faults noticed? `python mutants.py SEED COUNT [PREFIX]` changes one place of a module at a
time, in a copy of the package, and runs the tests of that module: a mutant that passes them
survives. PREFIX, such as `graph/`, leaves out the other modules.

Tests run in copies of this process, which has imported torch once.

Prints a line of JSON for each mutant, and the share that was killed.
"""

import ast
import copy
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import torchvision  # noqa: F401 - imported once for all copies

ROOT = Path(__file__).parents[2]
ARCHIVE = ["network/test_archive_limits.py", "network/test_archive.py"]
TESTS = {
    "graph/ir.py": ["graph", "views/test_drawing.py"],
    "graph/schema.py": ["graph", "network/test_archive.py"],
    "graph/wiring.py": ["graph"],
    "ops/gating.py": ["ops/test_gates_and_routers.py", "network/test_gate_forms.py"],
    "ops/liveness.py": ["ops/test_gates_and_routers.py", "ops/test_stage_plans.py",
                        "network/test_execution.py"],
    "network/archive.py": ARCHIVE,
    "network/archive_checks.py": ARCHIVE,
    "network/manifest.py": ARCHIVE,
    "network/reconstruction.py": ARCHIVE,
    "system/files.py": ["system/test_files.py"],
}  # fmt: skip
"""The modules, and the tests that are theirs."""
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
CPU_SECONDS, WALL_SECONDS = 600, 3600
"""Tests that take longer do not end, which is noticed too."""


def changes(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Each place that can be changed, by its number in a walk of the tree, and how.

    Annotations, `slots=` and `strict=` are none: changed, they give the same results.
    """
    without = {
        id(inner)
        for node in ast.walk(tree)
        for part in (
            getattr(node, "annotation", None),
            getattr(node, "returns", None),
            node if isinstance(node, ast.keyword) and node.arg in ("slots", "strict") else None,
        )
        if part is not None
        for inner in ast.walk(part)
    }
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in without:
            continue
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield number, "comparison"
        elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
            yield number, "operator"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield number, "not"
        elif isinstance(node, ast.If | ast.IfExp):
            yield number, "condition"
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            yield number, "number"
        elif isinstance(node, ast.Return) and ast.unparse(node) not in ("return", "return None"):
            yield number, "return"


def changed(tree: ast.Module, number: int, how: str) -> tuple[str, int]:
    """The source with one place changed, and the line of it."""
    tree = copy.deepcopy(tree)
    node = list(ast.walk(tree))[number]
    if isinstance(node, ast.Compare):
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp | ast.BoolOp):
        node.op = SWAPS[type(node.op)]()
    elif isinstance(node, ast.UnaryOp):
        node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node, ast.If | ast.IfExp):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Constant):
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    elif isinstance(node, ast.Return):
        node.value = ast.Constant(None)
    return ast.unparse(ast.fix_missing_locations(tree)), node.lineno


def survives(package: Path, module: str, source: str) -> bool:
    """Whether the tests of a module pass on its mutant, in a copy of this process."""
    file = package / "dggraph" / module
    before = file.read_text(encoding="utf-8")
    file.write_text(source, encoding="utf-8")
    try:
        child = os.fork()
        if child == 0:
            run_tests(package, module)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        file.write_text(before, encoding="utf-8")


def run_tests(package: Path, module: str) -> NoReturn:
    """End this process with the exit status of the tests."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    signal.alarm(WALL_SECONDS)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    os.chdir(package)
    os.environ["PYTHONPATH"] = str(package)
    sys.path.insert(0, str(package))
    arguments = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--basetemp", "scratch"]
    os._exit(pytest.main([*arguments, *(f"tests/{one}" for one in TESTS[module])]))


def main(seed: int, count: int, prefix: str) -> None:
    chosen = [module for module in TESTS if module.startswith(prefix)]
    draw, tried, killed = random.Random(seed), 0, 0
    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        for name in ("dggraph", "tests"):
            shutil.copytree(ROOT / name, package / name)
        shutil.copy(ROOT / "pyproject.toml", package)
        trees = {module: ast.parse((ROOT / "dggraph" / module).read_text()) for module in chosen}
        places = [(module, *change) for module, tree in trees.items() for change in changes(tree)]
        for module, number, how in draw.sample(places, min(count, len(places))):
            source, line = changed(trees[module], number, how)
            is_alive = survives(package, module, source)
            killed += not is_alive
            tried += 1
            print(json.dumps([module, line, how, "survives" if is_alive else "killed"]), flush=True)
    print(f"{killed} of {tried} killed; {len(places)} places")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), "".join(sys.argv[3:]))
