"""Every method under plain DDP on two processes; the steps are in `distributed_baselines.py`."""

import os
import subprocess
from pathlib import Path

import pytest
from command_line import ON_TWO_PROCESSES

from dggraph.baselines import BASELINES

HELPERS = Path(__file__).resolve().parents[1] / "helpers"

pytestmark = pytest.mark.cpu


def test_processes_keep_equal_weights_and_no_parameter_is_without_a_gradient() -> None:
    paths = os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*ON_TWO_PROCESSES, str(HELPERS / "distributed_baselines.py")],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(BASELINES)
