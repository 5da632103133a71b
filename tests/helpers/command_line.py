"""Commands as a user starts them, in this process."""

import sys

import pytest

from dggraph.cli.main import main

ON_TWO_PROCESSES = (
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
)  # fmt: skip
"""What comes before a script, or before -m and a module."""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err
