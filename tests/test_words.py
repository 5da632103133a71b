"""Turns of phrase that native readers stumble over stay out of the package, its documentation and
its tests.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
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
IDIOMS = "longer|such|more|matter|way|one|room|state|public|need|reason|difference|missing|mixing|rounding|surprise"
STRANGE = {
    "a docstring that begins with 'Of'": r'"""Of ',
    "'is no X' for 'is not an X'": rf"(?<!here )\b(is|are) no (?!({IDIOMS})\b)[A-Za-z]",
    "'Read it so'": r"Read it so\b",
}


@pytest.mark.parametrize("what", STRANGE)
def test_strange_phrases_stay_out(what: str) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for file in FILES
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(STRANGE[what], line)
    ]
    assert not found, "\n".join(found)
