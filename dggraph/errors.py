"""The exceptions and warnings of dggraph, one class per meaning.

Each message says what is wrong, why, and how to fix it.
"""


class DggraphError(Exception):
    """The base class of all errors; the command line prints it as one line, with exit code 4."""


class DggraphWarning(UserWarning):
    """A fact that the user should know and that stops nothing; the command line prints one line."""


class InputError(DggraphError):
    """A model, an input tensor, an image or an option that dggraph cannot work with."""


class UnknownModelError(InputError):
    """A MODEL name that is in no registry; the message has the nearest ones."""


class DownloadError(InputError):
    """Weights that are not here and cannot be fetched; the message says from where."""


class BranchError(InputError):
    """The backbone would take another branch for this batch than the one that was traced."""


class TraceError(DggraphError):
    """`torch.fx` could not trace the backbone; the message names module, line and a way out."""


class DiscoveryError(DggraphError):
    """The requested stages are not single-entry, single-exit blocks of the backbone."""


class NothingToRouteError(DggraphError):
    """The backbone has no block around which an edge could lead."""


class GraphError(DggraphError):
    """A `DynamicGraph` breaks one of the invariants that `verify` checks."""


class WiringError(DggraphError):
    """A wiring names an edge that cannot exist."""


class CheckError(DggraphError):
    """A result is not what it must be, so it was not kept; the message has both values."""


class LoweringError(CheckError):
    """The lowered network differs from the backbone, so `convert` does not return it."""


class BackboneOnlyError(DggraphError, AttributeError):
    """An attribute or method that the backbone has and its converted network does not.

    The message says what to do before converting.
    """


class StructureError(DggraphError):
    """A module of a converted network was removed, or replaced by one that its graph cannot run."""


class GateError(DggraphError):
    """A gate returned a value that is not a valid weight, for example NaN."""


class GradientError(DggraphError):
    """A derivative was requested that the fast backward pass does not have."""


class HookError(DggraphError):
    """A hook on a module of a converted network cannot run, or does what is not possible there.

    The message names modules on which it would work.
    """


class ArchiveError(DggraphError):
    """An archive is damaged, foreign, newer than this version, or cannot be written."""


class ExportError(DggraphError):
    """A network that cannot be written in the requested form; the message says in which it can."""


class MissingExtraError(DggraphError):
    """An optional dependency is missing; the message names the extra that installs it."""


class BusyError(DggraphError):
    """The page of `dggraph view` has more to do than it can; the same request works later."""


class KernelError(DggraphError):
    """The optional C++ kernels could not be built; the message quotes the compiler."""


class CheckpointError(DggraphError):
    """A training checkpoint is damaged or cannot be written.

    The message names it, and says which checkpoint is still valid.
    """


class TrainingError(DggraphError):
    """Training cannot go on.

    A loss is not finite, the processes disagree, or the results cannot be written.
    """


class LostProcessError(TrainingError):
    """Other processes of the same run cannot be reached.

    If one of them reported an error of another kind, that error is the cause.
    """
