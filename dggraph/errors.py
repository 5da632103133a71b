"""Every error dggraph raises on purpose: one class per meaning, each message says what, why and how
to fix it.
"""


class DggraphError(Exception):
    """Root of all dggraph errors; the command line turns it into one line and exit code 4."""


class DggraphWarning(UserWarning):
    """Something that a user should know and that ends nothing; the command line prints it as one
    line.
    """


class InputError(DggraphError):
    """A model, an input tensor, an image or an option is not something dggraph can work with."""


class BranchError(InputError):
    """A batch for which the backbone's own forward would take another branch than the one that was
    traced.
    """


class TraceError(DggraphError):
    """`torch.fx` could not trace the backbone; the message names the module, the line and the way
    out.
    """


class DiscoveryError(DggraphError):
    """The stages asked for do not describe single-entry, single-exit blocks of the backbone."""


class NothingToRouteError(DggraphError):
    """The backbone has no block with a candidate edge around it."""


class GraphError(DggraphError):
    """A `DynamicGraph` breaks one of the invariants that `verify` checks."""


class WiringError(DggraphError):
    """A wiring names an edge that cannot exist."""


class LoweringError(DggraphError):
    """The lowered network does not equal the backbone, so it is not handed out."""


class BackboneOnlyError(DggraphError, AttributeError):
    """Something that the backbone can do and a converted network cannot; the message says what to
    do before converting.
    """


class StructureError(DggraphError):
    """A module of a converted network was taken away, or replaced by one that its graph cannot
    run.
    """


class GateError(DggraphError):
    """A gate produced something that is not a weight, for example NaN."""


class GradientError(DggraphError):
    """A derivative was asked for that the fast backward does not have."""


class HookError(DggraphError):
    """A hook was put where the converted network cannot run it, or does what it cannot do there;
    the message names other modules.
    """


class ArchiveError(DggraphError):
    """An archive is damaged, foreign, newer than this version, or cannot be written."""


class MissingExtraError(DggraphError):
    """An optional dependency is needed; the message names the extra that brings it."""


class KernelError(DggraphError):
    """The optional C++ kernels could not be built; the message says what the compiler said."""


class CheckpointError(DggraphError):
    """A training checkpoint is damaged or cannot be written; the message says which, and what still
    holds.
    """


class TrainingError(DggraphError):
    """Training cannot go on: a loss is not finite, the processes disagree, or what it computes
    cannot be written.
    """


class LostProcessError(TrainingError):
    """Other processes of the same run cannot be reached; where one of them has said why it ended,
    that is the error to look at.
    """
