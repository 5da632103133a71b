"""What errors of others mean: one table, asked before anything is called a bug of ours."""

import errno
import re
import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path

PACKAGE = str(Path(__file__).parents[1])
LIBRARIES = tuple(
    {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)


@dataclass(frozen=True, slots=True)
class Cause:
    """A circumstance, told by the words of whoever met it first."""

    pattern: str
    """Searched for in `TypeName: message`."""
    kind: str
    """The error of ours that it amounts to, for --json."""
    meaning: str
    """Why it happens and what to do. Of one without a name of its own in `pattern`, the first line
    is said before it.
    """


CAUSES = (
    Cause(
        r"Expected more than 1 value per channel when training",
        "InputError",
        "batch norm takes its statistics over a batch, and found one value a channel: one image, of"
        " 1 x 1 pixels where that norm is. Raise batch_size (a step takes batch_size /"
        " grad_accum_steps images at once) or input_size, or keep the statistics: tune = 'norms'.",
    ),
    Cause(
        r"DataLoader worker .*signal: Bus error|unable to .*torch_\d",
        "LoaderError",
        "loader processes hand images over in shared memory, which is full. Enlarge /dev/shm"
        " (docker run --shm-size=8g), or lower workers.",
    ),
    Cause(
        r"DataLoader worker .*(killed by signal|exited unexpectedly)",
        "LoaderError",
        "a loader process was ended from outside, mostly by the system for lack of memory (its log"
        " says so: dmesg). Lower workers or batch_size, or use workers = 0 to see the error itself."
        " What was saved before still holds.",
    ),
    Cause(
        r"OutOfMemoryError|CUDA out of memory|CUDNN_STATUS_ALLOC_FAILED",
        "MemoryError",
        "the GPU's memory is full. Lower batch_size or input_size, raise grad_accum_steps, or use"
        " amp = 'bfloat16'; nvidia-smi shows who else is there. What was saved before still holds.",
    ),
    Cause(
        r"MemoryError|DefaultCPUAllocator|[Cc]an(no|')t allocate memory|std::bad_alloc|not enough"
        r" memory",
        "MemoryError",
        "there is not enough memory. Lower batch_size, validation_batch_size, input_size or"
        " workers, or raise grad_accum_steps. What was saved before still holds.",
    ),
    Cause(
        r"stack expects each tensor to be equal size",
        "InputError",
        "images of one batch have different sizes. A data set of your own must give all of them the"
        " network's input size.",
    ),
    Cause(
        r"Class values must be (smaller|non-negative)|Target -?\d+ is out of bounds",
        "InputError",
        "a label is not a class: labels count from 0 and are smaller than the number of classes."
        " Mend the data set, or set num_classes.",
    ),
    Cause(
        r"Overflow when unpacking|int too large to convert|too large to be represented",
        "InputError",
        "a number in the data is too large for 64 bits. Number the images and categories anew.",
    ),
    Cause(
        r"ModuleNotFoundError|ImportError",
        "MissingExtraError",
        "a package is missing, or of another version than its neighbours expect. Install it in this"
        " environment; `dggraph doctor` lists what is here.",
    ),
    Cause(
        r"AcceleratorError|CUDA (error|driver)|CUDNN_STATUS|no kernel image is available|NVIDIA"
        r" driver",
        "RuntimeError",
        "the GPU or its driver failed. CUDA_VISIBLE_DEVICES= runs on the CPU;"
        " CUDA_LAUNCH_BLOCKING=1 shows the operation. What was saved before still holds.",
    ),
    Cause(
        r"UnicodeDecodeError|UnicodeEncodeError|surrogates not allowed",
        "InputError",
        "a file or its name is not UTF-8. Save it as UTF-8, or rename it (convmv does whole"
        " folders).",
    ),
)

REMEDIES = {
    errno.ENOSPC: "Make room, or choose another place.",
    errno.EDQUOT: "Your share of the disk is used up: make room, or choose another place.",
    errno.EROFS: "That file system can only be read: choose another place.",
    errno.EACCES: "Change the rights, or choose another place.",
    errno.EPERM: "Change the rights, or choose another place.",
    errno.ENOENT: "Write the path as it is from here, or make it.",
    errno.ENOTDIR: "A file is in the way: choose another place.",
    errno.EISDIR: "A folder is in the way: choose another place.",
    errno.EMFILE: "Lower workers, or allow more open files: ulimit -n 65536.",
    errno.ENFILE: "Lower workers, or close other programs.",
    errno.ENOMEM: "Lower workers or batch_size.",
    errno.EIO: "The disk or the network behind it fails; look at the system's log.",
    errno.ESTALE: "The network drive went away: mount it again, and give the same call.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


def explain(error: Exception) -> tuple[str, str] | None:
    """What `error`, which is none of ours, means.

    Returns:
        The kind of error and a message with the cause and a remedy; None where it is not known, and
        so may be a bug of ours.
    """
    text = " ".join(
        (str(error).strip().splitlines() or [""])[-1].split()
        if _is_of_loader(error)
        else str(error).split()
    )
    said = text if _is_of_loader(error) else f"{type(error).__name__}: {text}"
    whole, said = said, said[:300].rstrip(".")
    if isinstance(error, OSError) and not isinstance(error, UnicodeError):
        what = error.strerror or text or type(error).__name__
        where = "" if error.filename is None else f": {error.filename!r}"
        remedy = REMEDIES.get(
            error.errno or 0, "The system said no more; what was saved before still holds."
        )
        return "InputError", f"{what}{where}. {remedy}"
    for cause in CAUSES:
        if re.search(cause.pattern, whole):
            return cause.kind, f"{cause.meaning[0].upper()}{cause.meaning[1:]} ({said}.)"
    place = _place_outside(error)
    if place is not None:
        return (
            type(error).__name__,
            (
                f"{said}. It was raised by {place}, which is not dggraph's. DGGRAPH_TRACEBACK=1"
                " shows the way there."
            ),
        )
    return None


def _place_outside(error: Exception) -> str | None:
    """Return the innermost line of the user's own code, a model or a data set.

    Code of this package and of installed libraries does not count.
    """
    frames = [
        (frame.filename, str(frame.lineno), frame.name)
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    if _is_of_loader(error):  # its own traceback is text by now
        frames += re.findall(r'File "([^"\n]+)", line (\d+), in (\S+)', str(error))
    for file, line, name in reversed(frames):
        if file.startswith(PACKAGE):
            return None
        if not file.startswith((*LIBRARIES, "<")):
            return f"{file}, line {line}, in {name}"
    return None


def _is_of_loader(error: Exception) -> bool:
    return str(error).startswith("Caught ") and "DataLoader worker process" in str(error)
