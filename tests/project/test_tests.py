"""What the tests themselves keep to: each file stands in the room of what it tests, alone; each
test asserts something; each error that is expected is named.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
FILES = sorted(TESTS.rglob("*.py"))
OF_NO_ROOM = {"attacks", "compatibility", "helpers", "project"}
WITHOUT_WORDS = ("SystemExit", "KeyboardInterrupt")
"""What these say is a number, or nothing."""


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for file in FILES:
        yield file.relative_to(TESTS), ast.parse(file.read_text(encoding="utf-8"))


def asserting_functions(tree: ast.Module) -> set[str]:
    """The functions of a file that assert, or call one of its functions that do."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    found: set[str] = set()
    for _ in functions:
        before = len(found)
        found |= {function.name for function in functions if asserts(function, found)}
        if len(found) == before:
            break
    return found


def asserts(function: ast.FunctionDef, others: set[str]) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).split(".")[-1]
            if name in others | {"raises", "warns"} or name.startswith("assert_"):
                return True
    return False


def test_rooms_are_those_of_the_package() -> None:
    import dggraph

    rooms = {path.parent.name for path in Path(dggraph.__file__).parent.glob("*/__init__.py")}
    folders = {file.relative_to(TESTS).parts[0] for file in TESTS.glob("*/*.py")}
    assert folders - OF_NO_ROOM <= rooms


def test_no_two_files_have_one_name() -> None:
    """So that each can be imported by its name alone, as pytest's default import does."""
    names = [file.stem for file in FILES]
    assert sorted(set(names)) == sorted(names)


def test_no_file_imports_from_another_but_from_helpers() -> None:
    tests = {file.stem for file in FILES if file.stem.startswith("test_")}
    found = []
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names = {str(node.module)}
            elif isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            else:
                continue
            found += [f"{file}:{node.lineno} imports {name}" for name in names & tests]
    assert not found, found


def test_every_test_asserts_something() -> None:
    shared = set[str]()
    for file in sorted((TESTS / "helpers").glob("*.py")):
        shared |= asserting_functions(ast.parse(file.read_text(encoding="utf-8")))
    found = [
        f"{file}: {node.name}"
        for file, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if not asserts(node, shared | asserting_functions(tree))
    ]
    assert not found, found


def test_every_expected_error_is_named() -> None:
    found = []
    for file, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "pytest.raises",
                "pytest.warns",
            ):
                is_named = any(keyword.arg == "match" for keyword in node.keywords)
                if not is_named and ast.unparse(node.args[0]) not in WITHOUT_WORDS:
                    found.append(f"{file}:{node.lineno}: {ast.unparse(node)} has no match")
    assert not found, found
