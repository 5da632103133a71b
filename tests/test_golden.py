"""Every pass prints for each kind of network what `golden/` holds; golden.py says how to renew
it.
"""

import pytest
from golden import FOLDER, NETWORKS, printed


@pytest.mark.parametrize("name", NETWORKS)
def test_passes_print_what_they_did(name: str) -> None:
    assert printed(name) == (FOLDER / f"{name}.txt").read_text()


def test_no_file_is_left_over() -> None:
    assert {file.stem for file in FOLDER.glob("*.txt")} == set(NETWORKS)
