"""Turns of phrase that native readers stumble over stay out of the package, its documentation and
its tests; prose has short lines and short paragraphs.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    file
    for pattern in (
        "dggraph/**/*.py",
        "tests/**/*.py",
        "benchmarks/*.py",
        "examples/*.py",
        "docs/**/*.md",
        "*.md",
    )
    for file in ROOT.glob(pattern)
    if file != Path(__file__).resolve()
)
PROSE = sorted(
    [
        ROOT / "README.md",
        *(page for page in ROOT.glob("docs/**/*.md") if page.parent.name != "tables"),
    ]
)
"""What people read first; tables that programs make are not prose."""
IDIOMS = (
    "longer|such|more|matter|way|one|room|state|public|need|reason|difference|missing|mixing"
    "|rounding|surprise"
)
STRANGE = {
    "a docstring that begins with 'Of'": r'"""Of ',
    "'is no X' for 'is not an X'": rf"(?<!here )\b(is|are) no (?!({IDIOMS})\b)[A-Za-z]",
    "'Read it so'": r"Read it so\b",
}
STRANGE_IN_PROSE = {
    "a sentence that begins with 'Of'": r"(^|[.:;!?*] )Of [a-z`]",
    "a sentence that begins with 'Else'": r"(^|[.:;!?] )Else\b",
    "'to the bit' for 'bitwise identical'": r"\bto the bit\b",
    "'anew' for 'again'": r"\banew\b",
    "'told' and 'tells' for 'reported' and 'says'": r"\b(told|tells)\b",
    "'hands out' for 'returns'": r"\b(hand|hands|handed) out\b",
    "'nobody' for 'nothing' or 'no image'": r"\bnobody\b",
    "'dear' for 'expensive'": r"\bdear(er|est)?\b",
    "'mend' for 'fix'": r"\bmend(s|ed|ing)?\b",
    "'iff'": r"\biff\b",
    "'none of ours', 'that is none'": r"\bnone of ours\b|\bthat is none\b",
    "'goes on with' for 'continues'": r"\b(go|goes|went) on (with|from)\b",
    "'leaf through'": r"\bleafed\b",
    "'what X says of Y'": r"\b(says|said|say) of\b",
    "'a second' and 'a class' as rates": r"\b(images|rounds|rows|steps) an? (second|class|image)\b",
    "'besides' for 'also' or 'except'": r"\bbesides\b",
    "'at once' for 'immediately'": r"\bsaid at once\b",
    "'kept MACs' for 'MACs ratio'": r"\bkept MACs\b|\bMACs kept\b(?! \|| on)",
}


def lines_of(file: Path) -> Iterator[tuple[int, str]]:
    yield from enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)


def prose_of(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a page outside of its fenced blocks."""
    is_code = False
    for number, line in lines_of(file):
        if line.startswith("```"):
            is_code = not is_code
        elif not is_code:
            yield number, line


def refuse(found: list[str]) -> None:
    assert not found, "\n".join(found)


@pytest.mark.parametrize("what", STRANGE)
def test_strange_phrases_stay_out(what: str) -> None:
    refuse(
        [
            f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
            for file in FILES
            for number, line in lines_of(file)
            if re.search(STRANGE[what], line)
        ]
    )


@pytest.mark.parametrize("what", STRANGE_IN_PROSE)
def test_strange_phrases_stay_out_of_the_pages(what: str) -> None:
    refuse(
        [
            f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
            for file in PROSE
            for number, line in prose_of(file)
            if re.search(STRANGE_IN_PROSE[what], re.sub(r"`[^`]*`", "`", line))
        ]
    )


def test_lines_of_prose_are_short() -> None:
    """Tables, pictures and a line that is one link may be longer."""
    refuse(
        [
            f"{file.relative_to(ROOT)}:{number}: {len(line)} characters"
            for file in PROSE
            for number, line in prose_of(file)
            if len(line) > 100 and not re.match(r"\||!\[|\s*\S+$", line)
        ]
    )


def test_paragraphs_are_short() -> None:
    """Five lines at most; items of a list count one by one."""
    found = []
    for file in PROSE:
        length = 0
        for number, line in prose_of(file):
            is_apart = re.match(r"\s*$|#|\||!\[|<|::: |--8<--|!!!|\[[^\]]*\]\([^)]*\)( ·)?$", line)
            starts_item = re.match(r"\s*([-*]|\d+\.) ", line)
            length = 0 if is_apart else 1 if starts_item else length + 1
            if length == 6:
                found.append(f"{file.relative_to(ROOT)}:{number}: a paragraph of six lines")
    refuse(found)
