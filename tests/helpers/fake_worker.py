"""A stand-in for the worker of a comparison, without torch: it counts to ten and writes its row.

Like the real one it resumes where it was, ends with its queue, and obeys SIGTERM. What its run is
to do stands in the name of the method: `fails` writes an error, `dies` ends without a row.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path


def main(folder: Path) -> int:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(130))

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os._exit(130)

    threading.Thread(target=wait, daemon=True).start()
    row = json.loads((folder / "job.json").read_bytes())["row"]
    with (folder / "starts").open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    if row["method"] == "dies":
        print("a last word", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGKILL)
    progress = folder / "progress"
    done = len(progress.read_text()) if progress.exists() else 0
    for _ in range(done, 10):
        time.sleep(0.01)
        with progress.open("a") as stream:
            stream.write(".")
    result = {"accuracy": 0.5 + row["seed"] / 100}
    if row["method"] == "fails":
        result = {"error": {"type": "InputError", "message": "no such thing"}}
    scratch = folder / "row.part"
    scratch.write_text(json.dumps(row | result))
    os.replace(scratch, folder / "row.json")
    with (folder / "ends").open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
