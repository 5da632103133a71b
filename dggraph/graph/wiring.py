"""Wirings: which pairs of a stage's vertices become candidate edges.

Every wiring is united with the static edges.
"""

import difflib
from collections.abc import Callable, Iterable
from typing import Any

import networkx as nx

from dggraph.errors import InputError, WiringError
from dggraph.graph.ir import CandidateEdge, DynamicGraph, EdgeKind, input_shape
from dggraph.system.specs import Spec, bind, read_sum

Wiring = Callable[[int], Iterable[tuple[int, int]]]
"""Maps the number of vertices of a stage (v0 .. vN, out) to its candidate edges.

Edges are pairs (source, target) of vertex indices with source < target.
"""


def complete() -> Wiring:
    """Return the wiring of all pairs: the paper's complete DAG."""
    return _complete


def chain() -> Wiring:
    """Return the wiring that adds nothing to the static edges."""
    return lambda size: ()


def window(reach: int) -> Wiring:
    """Return the wiring of pairs at most `reach` apart, whose edges grow linearly with depth."""
    _require_whole("window", reach)
    _require(reach >= 1, f"window({reach}): the reach must be at least 1.")
    return lambda size: ((i, j) for j in range(size) for i in range(max(0, j - reach), j))


def entry() -> Wiring:
    """Return the wiring from v0 to every other vertex: the stage's input is always at hand."""
    return lambda size: ((0, j) for j in range(1, size))


def dilated(k: int, p: int) -> Wiring:
    """Return wiring to all nodes with dilation `k` and period `p`: about 1 / (k p) of all pairs.

    `out` and every `p`-th vertex before it read back in steps of `k`: the vertex just before them,
    the one `k` earlier, and so on. The other vertices have their static edges alone. DenseFormer
    (arXiv 2402.02622) calls this k x p; it counts periods from the entry, which is the same for
    stages whose number of blocks is a multiple of `p`. `dilated(1, 1)` has all pairs.
    """
    _require_whole("dilated", k, p)
    _require(k >= 1 and p >= 1, f"dilated({k}, {p}): needs k >= 1 and p >= 1.")
    return lambda size: ((i, j) for j in range(size - 1, 0, -p) for i in range(j - 1, -1, -k))


def watts_strogatz(k: int, p: float, seed: int = 0) -> Wiring:
    """Return a small world: `k` neighbours per vertex, rewired with probability `p`.

    networkx draws the graph; edges are oriented forward.
    """
    _require_whole("watts_strogatz", k, seed)
    _require(k >= 2 and 0 <= p <= 1, f"watts_strogatz({k}, {p}): needs k >= 2 and 0 <= p <= 1.")
    return lambda size: _forward(nx.watts_strogatz_graph(size, min(k, size - 1), p, seed=seed))


def erdos_renyi(p: float, seed: int = 0) -> Wiring:
    """Return a random wiring that has every pair with probability `p`.

    networkx draws the graph; edges are oriented forward.
    """
    _require_whole("erdos_renyi", seed)
    _require(0 <= p <= 1, f"erdos_renyi({p}): needs 0 <= p <= 1.")
    return lambda size: _forward(nx.gnp_random_graph(size, p, seed=seed))


def barabasi_albert(m: int, seed: int = 0) -> Wiring:
    """Return a wiring of preferential attachment, with `m` edges per new vertex.

    networkx draws the graph; edges are oriented forward.
    """
    _require_whole("barabasi_albert", m, seed)
    _require(m >= 1, f"barabasi_albert({m}): needs m >= 1.")
    return lambda size: _forward(nx.barabasi_albert_graph(size, min(m, size - 1), seed=seed))


def unite(*wirings: Wiring) -> Wiring:
    """Return the wiring that has the edges of each of `wirings`, for example window(4) + entry."""
    if _complete in wirings:
        return _complete
    return lambda size: (edge for wiring in wirings for edge in wiring(size))


WIRINGS: dict[str, Callable[..., Wiring]] = {
    "complete": complete,
    "chain": chain,
    "window": window,
    "entry": entry,
    "dilated": dilated,
    "watts_strogatz": watts_strogatz,
    "erdos_renyi": erdos_renyi,
    "barabasi_albert": barabasi_albert,
}


def register_wiring(name: str, make: Callable[..., Wiring]) -> None:
    """Register a wiring, to be selected with `wiring=name` or `--wiring name`.

    Args:
        name: an identifier that is not registered yet.
        make: called with the arguments in brackets after the name; returns a `Wiring`.

    Raises:
        WiringError: the name is already registered or is not an identifier.

    Example:
        >>> import dggraph
        >>> from dggraph.graph.wiring import WIRINGS
        >>> dggraph.register_wiring("star", WIRINGS["chain"])
        >>> net = dggraph.convert("dggraph:resnet20_8", wiring="star", allow_static=True)
        >>> net.report.num_edges > 0
        True
    """
    _require(
        name.isidentifier() and name not in WIRINGS,
        f"cannot register a wiring as {name!r}: "
        + ("the name is already registered." if name in WIRINGS else "it is not an identifier."),
    )
    WIRINGS[name] = make


def parse_wiring(text: str) -> Wiring:
    """Parse a wiring such as `complete`, `dilated(4, 2)` or the union `window(4)+entry`.

    Raises:
        WiringError: there is no wiring of that name, or it does not accept these arguments.
    """
    try:
        wirings = [_make(spec) for spec in read_sum(text)]
    except (InputError, TypeError, ValueError) as error:
        raise WiringError(
            f"wiring: {error} Write for example complete, window(4)+entry or dilated(4, 2)."
        ) from error
    return wirings[0] if len(wirings) == 1 else unite(*wirings)


def wire(
    graph: DynamicGraph, wiring: "str | Wiring | Iterable[tuple[str, str]] | nx.DiGraph[str]"
) -> DynamicGraph:
    """Add the candidate edges of `wiring` to a graph of static edges.

    Args:
        graph: a graph with static edges only.
        wiring: a name with arguments, a `Wiring`, an edge list of node names, or a networkx graph
            of node names.

    Raises:
        WiringError: an edge runs backward, joins two stages or two shapes, or names an unknown
            node.
    """
    names = _pairs(graph, wiring)
    known = {(edge.source, edge.target) for stage in graph.stages for edge in graph.edges(stage)}
    added = [
        _candidate(graph, source, target)
        for source, target in dict.fromkeys(names)
        if (source, target) not in known
    ]
    return DynamicGraph(
        graph.name,
        stages=graph.stages.values(),
        nodes=[node for stage in graph.stages for node in graph.nodes(stage)],
        edges=[*(edge for stage in graph.stages for edge in graph.edges(stage)), *added],
    )


def is_complete(wiring: object) -> bool:
    """Whether `wiring` is the complete one, as a name in any spelling or as `complete()`."""
    return (parse_wiring(wiring) if isinstance(wiring, str) else wiring) is _complete


def _pairs(
    graph: DynamicGraph, wiring: "str | Wiring | Iterable[tuple[str, str]] | nx.DiGraph[str]"
) -> list[tuple[str, str]]:
    """Return the pairs of node names that `wiring` describes."""
    if isinstance(wiring, str):
        wiring = parse_wiring(wiring)
    if isinstance(wiring, nx.DiGraph):
        return list(wiring.edges)
    if callable(wiring):
        try:
            return [
                (graph.nodes(stage)[i].name, graph.nodes(stage)[j].name)
                for stage in graph.stages
                for i, j in wiring(len(graph.nodes(stage)))
            ]
        except (TypeError, ValueError, IndexError) as error:
            raise WiringError(
                f"the wiring {wiring!r} failed: {error}. It must map a number of vertices to pairs"
                " of indices below that number."
            ) from error
    pairs: list[Any] = list(wiring) if isinstance(wiring, Iterable) else [wiring]
    for pair in pairs:
        if not (
            isinstance(pair, tuple | list)
            and len(pair) == 2
            and all(isinstance(end, str) for end in pair)
        ):
            raise WiringError(
                f"{pair!r} is not an edge. A wiring is a name such as 'window(4)', a"
                " networkx.DiGraph, or a list of pairs of node names."
            )
    return [(source, target) for source, target in pairs]


def _make(spec: Spec) -> Wiring:
    if spec.name not in WIRINGS:
        close = difflib.get_close_matches(spec.name, WIRINGS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise WiringError(
            f"there is no wiring {spec.name!r}; choose from {', '.join(WIRINGS)}.{hint}"
        )
    return bind(spec, WIRINGS[spec.name])()


def _complete(size: int) -> Iterable[tuple[int, int]]:
    return ((i, j) for j in range(size) for i in range(j))


def _candidate(graph: DynamicGraph, source: str, target: str) -> CandidateEdge:
    label = f"edge {source} -> {target}"
    for end in (source, target):
        if end not in graph.nx:
            close = difflib.get_close_matches(str(end), graph.nx, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else " print(graph) lists them."
            raise WiringError(f"{label} names {end!r}, which is not a node of the graph.{hint}")
    first, last = graph.nx.nodes[source]["block"], graph.nx.nodes[target]["block"]
    if first.stage != last.stage:
        raise WiringError(
            f"{label} joins stages {first.stage} and {last.stage}, whose shapes differ. Wire within"
            " a stage."
        )
    order = [node.name for node in graph.nodes(first.stage)]
    if order.index(source) >= order.index(target):
        raise WiringError(
            f"{label} runs backward; the source must come first. Reverse the edge or drop it."
        )
    return CandidateEdge(
        source=source, target=target, is_static=False, kind=_kind(graph, source, target)
    )


def _kind(graph: DynamicGraph, source: str, target: str) -> EdgeKind:
    if graph.incoming(target)[0].kind == "concat":
        return "concat"
    block = graph.nx.nodes[source]["block"]
    have, want = block.shape, input_shape(graph, target)
    if have == want:
        return "add"
    axis = range(len(have))[graph.stages[block.stage].channel_position]
    if len(have) == len(want) and all(
        a == b for i, (a, b) in enumerate(zip(have, want, strict=True)) if i != axis
    ):
        return "adapter"
    raise WiringError(
        f"edge {source} -> {target} joins shapes {have} and {want}; aggregation adds features, so"
        " both ends must have the same shape. Remove the edge."
    )


def _forward(graph: "nx.Graph[int]") -> list[tuple[int, int]]:
    return [(min(edge), max(edge)) for edge in graph.edges]


def _require_whole(name: str, *values: object) -> None:
    for value in values:
        _require(type(value) is int, f"{name}: {value!r} must be a whole number.")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise WiringError(message)
