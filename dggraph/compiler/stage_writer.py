"""Write one stage into the lowered graph: ops keep their order, and the inputs of blocks change.

In front of block j, the writer inserts, in this order:
1. `share`, the value of node j-1 for later nodes;
2. the weights of the edges into j, see `edge_writer`;
3. `aggregate` (`concatenate`, `add_normed`), the block's new input.

`out` is the same without a block. Weights of edges that `aggregate` reads as they are get their
gradients in `weigh` or `collect`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from dggraph.compiler.aliasing import may_overwrite, writers
from dggraph.compiler.calls import mark_lifted, mark_routing
from dggraph.compiler.edge_writer import EDGE_WRITERS, Deciders, Emitter
from dggraph.compiler.lowered import StageRouting, routing_name
from dggraph.compiler.planning import BlockPlan, StagePlan, plan_block, why_dense
from dggraph.compiler.regions import Flow, Region
from dggraph.compiler.residuals import StageAdds, branch
from dggraph.compiler.stages import FoundStage
from dggraph.graph.ir import DynamicGraph
from dggraph.ops.additive import Gain, add_normed
from dggraph.ops.aggregation import adapt, aggregate, concatenate, share
from dggraph.ops.stage_cache import stage_cache


class StageWriter:
    """Writes one stage.

    Its values, rows, columns and live flags grow as it visits the vertices.
    """

    def __init__(
        self,
        flow: Flow,
        lowered: fx.Graph,
        by_name: dict[str, fx.Node],
        stage: FoundStage,
        adds: StageAdds,
        graph: DynamicGraph,
        name: str,
        deciders: Deciders,
        routing: StageRouting,
        training: fx.Node,
    ) -> None:
        self.flow, self.lowered, self.by_name, self.stage = flow, lowered, by_name, stage
        self.adds, self.graph, self.name = adds, graph, name
        self.vertices = graph.nodes(name)
        self.emitter = Emitter(lowered, name)
        self.edges = EDGE_WRITERS[deciders.scope](
            self.emitter, graph, name, deciders, routing, training
        )
        self.deciders, self.routing = deciders, routing
        self.values = [by_name[stage.entry]]
        self.shared: list[fx.Node] = []
        self.blocks: list[BlockPlan] = []

    def write(self) -> StagePlan:
        """Rewire the stage, and return the plan that names its fx nodes."""
        is_lifted = self.graph.stages[self.name].residual == "lift"
        spent: list[fx.Node] = []
        for index, block in enumerate(self.stage.blocks, start=1):
            inside = [self.by_name[name] for name in block.fx_nodes]
            source = self.by_name[block.input]
            first = next(fx_node for fx_node in inside if source in fx_node.all_input_nodes)
            adds = self.adds[index - 1] if is_lifted else ()
            if index == 1:
                with self.lowered.inserting_before(first):
                    path = f"{routing_name(self.name)}.threshold"
                    threshold = self.emitter.node("get_attr", path, (), "threshold")
                    self.cache = self.emitter.call(stage_cache, (), "cache")
                    self.edges.begin(threshold, self.cache)
            with self.lowered.inserting_before(first):
                new_input = self._write_vertex(index)
            for fx_node in inside:
                fx_node.replace_input_with(source, new_input)
            output = self.by_name[block.output]
            if adds:
                terms = self._lift(adds, block)
                spent.append(output)
                inside, output = (
                    [*(fx_node for fx_node in inside if fx_node is not output), *terms[1:]],
                    terms[-1],
                )
            self.values.append(output)
            self.blocks.append(
                plan_block(self.flow, self.vertices[index].name, inside, new_input, output)
            )
        last = self.by_name[self.stage.output]
        inside_stage = {name for block in self.stage.blocks for name in block.fx_nodes}
        outside = [
            user
            for user in last.users
            if user.name in self.flow.by_name and user.name not in inside_stage
        ]
        own = set(self.stage.blocks[-1].fx_nodes)
        late = [
            fx_node.name
            for fx_node in writers(self.flow, self.flow.by_name[self.stage.output])
            if fx_node.name in own
        ]
        finished = (
            self.by_name[max(late, key=lambda name: self.flow.order[self.flow.by_name[name]])]
            if late
            else last
        )
        # After a last line like `y[mask] = z`: only then does y have its final value.
        with self.lowered.inserting_after(finished):
            anchor = self.lowered.create_node("get_attr", "training", name=f"{self.name}_end")
        with self.lowered.inserting_before(anchor):
            new_output = self._write_vertex(len(self.vertices) - 1)
            gates = self.edges.gates()
        self.lowered.erase_node(anchor)
        for user in outside:
            user.replace_input_with(last, new_output)
        blocks = [{self.by_name[name] for name in block.fx_nodes} for block in self.stage.blocks]
        mark_routing(self.emitter.own, blocks, self.stage.blocks[0].path, self.lowered)
        self._erase([*spent, last])
        self.by_name[self.stage.output] = new_output
        self.by_name |= {gate.name: gate for gate in gates}
        return StagePlan(
            name=self.name,
            scope=self.deciders.scope,
            shrinks=self.deciders.gate.shrinks,
            entry=self.values[0].name,
            output=new_output.name,
            gates=tuple(gate.name for gate in gates),
            granularity=self.edges.granularity,
            aggregation=self.edges.aggregation,
            own=tuple(fx_node.name for fx_node in self.emitter.own),
            blocks=tuple(self.blocks),
            writes_output=may_overwrite(self.flow, new_output),
            dense_only=why_dense(self.flow, self.blocks, self.values, self.emitter.own),
        )

    def _write_vertex(self, index: int) -> fx.Node:
        """Write the ops in front of vertex `index`, and return its new input."""
        incoming = self.graph.incoming(self.vertices[index].name)
        topology, call = self.edges.topology, self.emitter.call
        sources = topology.sources[topology.incoming(index)]
        self.shared.append(call(share, (self.values[-1], self.cache, index - 1), f"x{index - 1}"))
        weights = self.edges.write(index, sources, self.shared[-1])
        axis = self.stage.channel_axis
        position = self.graph.stages[self.name].channel_position
        wanted = self.vertices[index - 1].shape[position]
        features = [
            (
                call(adapt, (self.shared[source], wanted, axis), f"x{source}_for_{index}")
                if edge.kind == "adapter"
                else self.shared[source]
            )
            for source, edge in zip(sources, incoming, strict=True)
        ]
        if incoming[0].kind == "concat":
            return call(concatenate, (features, weights, axis), f"in{index}")
        if self.edges.aggregation == "additive":
            self.routing.add_module(f"sum_{index}", Gain())
            path = f"{routing_name(self.name)}.sum_{index}.gain"
            gain = self.emitter.node("get_attr", path, (), f"gain{index}")
            return call(add_normed, (features, weights, gain, axis), f"in{index}")
        marks = tuple(
            None if edge.kind == "adapter" else source
            for source, edge in zip(sources, incoming, strict=True)
        )
        given: tuple[Any, ...] = (features, weights, self.cache, marks, index)
        if self.edges.collects:
            given = (*given, self.edges.through(sources))
        return call(aggregate, given, f"in{index}")

    def _lift(self, adds: tuple[fx.Node, ...], block: Region) -> list[fx.Node]:
        """Reduce a block to F, the sum of its branches.

        Returns:
            The first branch and the sums; no op reads the block's last add afterwards.
        """
        lines = [self.flow.by_name[block.input], *adds]
        branches = [
            self.by_name[branch(add, line).name] for add, line in zip(adds, lines, strict=False)
        ]
        last = self.by_name[block.output]
        terms = branches[:1]
        with self.lowered.inserting_before(last):
            for number, term in enumerate(branches[1:], start=1):
                name = f"{self.name}_branches_{last.name}_{number}"
                terms.append(
                    self.lowered.create_node(
                        "call_function", torch.add, (terms[-1], term), {}, name=name
                    )
                )
        mark_lifted(terms, last)
        return terms

    def _erase(self, candidates: Sequence[fx.Node]) -> None:
        """Remove ops without readers: adds of lifted blocks and concats of growth stages."""
        open_ends = [
            *candidates,
            *(self.by_name[block.input] for block in reversed(self.stage.blocks)),
        ]
        for fx_node in dict.fromkeys(open_ends):
            is_rest = fx_node.op == "call_function" and fx_node.target in (torch.cat, torch.concat)
            if (
                not fx_node.users
                and (is_rest or fx_node in candidates)
                and fx_node.op != "placeholder"
            ):
                self.lowered.erase_node(fx_node)
