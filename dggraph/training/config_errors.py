"""What is wrong with a configuration, in plain words."""

import difflib
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel


def explain(error: Any, file: Path | None, config_class: type[BaseModel]) -> str:
    """Return what is wrong with a key, and what to give instead.

    Args:
        error: one of `ValidationError.errors()`.
        file: where the keys come from.
        config_class: the model that refused them.
    """
    key = str(error["loc"][0])
    where = f" in {file}" if file is not None else ""
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, config_class.model_fields, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "`dggraph train --help` lists them."
        return f"unknown key {key!r}{where}: {hint}"
    flag = f"--{key.replace('_', '-')}"
    if error["type"] == "missing" and len(error["loc"]) == 1:
        return (
            f"{key!r} is missing{where}; give it {'there' if where else 'in CONFIG'} or as {flag}"
        )
    if error["type"] in ("missing", "too_long"):
        return (
            f"{key}{where} needs {len(get_args(config_class.model_fields[key].annotation))} values"
        )
    return f"{key} = {error['input']!r}{where}: {_in_plain_words(error)}"


def _in_plain_words(error: Any) -> str:
    """What is wrong with a value, without pydantic's names of Python's types."""
    context = error.get("ctx", {})
    if error["type"].startswith("int"):
        return "give a whole number"
    if error["type"].startswith("float") or error["type"] == "finite_number":
        return "give a number"
    if error["type"].startswith("bool"):
        return "give true or false"
    if error["type"].startswith("string"):
        return "give a text"
    if error["type"].startswith(("tuple", "list")):
        return "give several values, [a, b]"
    if error["type"] == "literal_error":
        return f"give one of {context['expected'].replace(' or ', ', ')}"
    bounds = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}
    found = [
        f"{bounds[bound]} {limit if isinstance(limit, int) else format(limit, 'g')}"
        for bound, limit in context.items()
        if bound in bounds
    ]
    return f"it must be {found[0]}" if found else str(error["msg"]).removeprefix("Value error, ")
