"""The pages of the documentation as programs: their blocks, and how each kind of block is run.

A block may follow a comment `<!-- not run: REASON -->`: then its options and names are checked
against the program, and nothing runs. A block with a title is a file, written where the page's
commands run. A block titled Output, directly behind a block that runs, is what that one prints.
"""

import ast
import io
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest

from dggraph.cli.main import COMMANDS, main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n+)?"
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"\n]+)")?\n(?P<code>.*?)^```$'
    r'(?P<output>\n\n```text title="Output"\n.*?^```$)?',
    flags=re.MULTILINE | re.DOTALL,
)
INLINE = re.compile(r"`(dggraph [^`\n]+)`")
SETTING = re.compile(r"[A-Z_]+=\S*")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page."""

    place: str
    language: str
    code: str
    title: str | None
    reason: str | None
    """Why it cannot run here; None where it does."""
    output: str | None


def read_blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r'--8<-- "(.*?)"', lambda found: (ROOT / found[1]).read_text("utf-8"), text)
    return [
        Block(
            place=f"{page}:{text.count(chr(10), 0, found.start('language')) + 1}",
            language=found["language"],
            code=found["code"],
            title=found["title"],
            reason=found["reason"],
            output=found["output"] and found["output"].split("\n", 3)[3].removesuffix("```"),
        )
        for found in BLOCK.finditer(text)
    ]


def run_page(page: str, folder: Path) -> None:
    """Run the blocks of `page` in order, Python in one namespace, from the current folder."""
    namespace: dict[str, Any] = {"__name__": "documentation"}
    for block in read_blocks(page):
        printed = io.StringIO()
        if block.title is not None:
            (folder / block.title).write_text(block.code, encoding="utf-8")
        elif block.reason is not None:
            check_block(block)
        elif block.language == "python":
            with redirect_stdout(printed):
                exec(compile(block.code, block.place, "exec"), namespace)
        elif block.language == "bash":
            with redirect_stdout(printed):
                for words in commands(block.code):
                    run_command(words, block.place)
        else:
            continue
        if block.output is not None and block.reason is None:
            assert plain(printed.getvalue()) == plain(block.output), block.place


def plain(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def check_block(block: Block) -> None:
    """Check what can be checked of a block without running it."""
    if block.language == "python":
        check_names(block.code)
    elif block.language == "bash":
        for words in commands(block.code):
            check_command(words, block.place)


def commands(code: str) -> Iterator[list[str]]:
    """The commands of a shell block, as words; settings before a command are left out."""
    for line in code.replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            while words and SETTING.fullmatch(words[0]):
                words = words[1:]
            if words:
                yield words


def run_command(words: list[str], place: str) -> None:
    """Run a `dggraph` command, also one that stands behind `torchrun`, as the one process here."""
    arguments = check_command(words, place)
    if arguments is not None:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        code = stopped.value.code
        assert not code, f"{place}: {shlex.join(words)} ends with {code}"


def check_command(words: list[str], place: str) -> list[str] | None:
    """Check the options of a command; returns `dggraph`'s arguments where it calls that."""
    program, rest = Path(words[0]).name, words[1:]
    if program == "torchrun" and "dggraph" in rest:
        check_flags(rest[: rest.index("-m")], {"--standalone", "--nproc-per-node"}, place)
        program, rest = "dggraph", rest[rest.index("dggraph") + 1 :]
    if program == "dggraph":
        check_arguments(rest, place)
        return rest
    scripts = [word for word in rest if re.fullmatch(r"[\w/]+\.(py|sh)", word)]
    if program == "pip":
        check_install(rest, place)
    elif rest[:1] == ["-m"]:
        assert rest[1] in ("venv", "pytest"), f"{place}: python -m {rest[1]}"
    elif scripts:
        check_script(scripts[0], rest[rest.index(scripts[0]) + 1 :], place)
    else:
        assert program in ("apt-get", "pytest", "mkdocs", "ruff"), f"{place}: {shlex.join(words)}"
    return None


def check_flags(words: list[str], known: set[str], place: str) -> None:
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert flags <= known, f"{place}: {sorted(flags - known)}"


def check_arguments(arguments: list[str], place: str) -> None:
    """Command and options are the program's own, and so are the values of choices and numbers."""
    if not arguments or arguments[0] not in COMMANDS:
        assert arguments[:1] in (["COMMAND"], ["--help"], ["--version"]), f"{place}: {arguments}"
        return
    command: click.Command = import_module(f"dggraph.cli.{arguments[0]}").command
    context = click.Context(command, info_name=arguments[0], help_option_names=["-h", "--help"])
    try:
        values, _, _ = command.make_parser(context).parse_args(list(arguments[1:]))
        for parameter in command.params:
            kind = isinstance(parameter.type, click.Choice | click.IntRange | click.FloatRange)
            if kind and isinstance(values.get(parameter.name), str | list):
                parameter.type_cast_value(context, values[parameter.name])
    except click.UsageError as error:
        raise AssertionError(f"{place}: {shlex.join(arguments)}: {error.message}") from error


def check_install(words: list[str], place: str) -> None:
    """Extras that are asked for exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for found in re.findall(r"(?:dggraph|\.)\[([\w,]+)\]", " ".join(words)):
        missing = set(found.split(",")) - set(extras["optional-dependencies"])
        assert not missing, f"{place}: no extra {missing}"


def check_script(script: str, words: list[str], place: str) -> None:
    """A script of the repository is there, and knows the options."""
    if not (ROOT / script).parent.is_dir():
        return  # tests of an installed package go without benchmarks
    text = (ROOT / script).read_text("utf-8")
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"{word}\b|{word[2:].replace('-', '_')}\b", text), f"{place}: {word}"


def check_names(code: str) -> None:
    """What a block takes from dggraph is there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dggraph"):
            module = import_module(node.module or "")
            for alias in node.names:
                getattr(module, alias.name)
        elif isinstance(node, ast.Attribute):
            chain = ast.unparse(node)
            if re.fullmatch(r"dggraph(\.\w+)+", chain):
                value = import_module("dggraph")
                for name in chain.split(".")[1:]:
                    value = getattr(value, name)
