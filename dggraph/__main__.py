"""`python -m dggraph`, for launchers such as torchrun that start modules."""

import os

from dggraph.cli.main import main

if __name__ == "__main__":
    try:
        main()
    except SystemExit as ended:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            from dggraph.system.processes import leave

            leave(ended.code if isinstance(ended.code, int) else 1 if ended.code else 0)
        raise
