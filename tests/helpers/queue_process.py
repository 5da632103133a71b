"""A queue with `fake_worker`, as a process that can be killed: queue_process.py PLAN JOBS."""

import sys
from pathlib import Path

import fake_worker

from dggraph.comparing import queue
from dggraph.comparing.plan import read_plan

if __name__ == "__main__":
    queue.WORKER = (sys.executable, fake_worker.__file__)
    queue.PAUSE = 0.005
    queue.run_queue(read_plan(Path(sys.argv[1])), jobs=int(sys.argv[2]))
