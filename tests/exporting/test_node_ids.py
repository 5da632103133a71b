"""Node data name the operations of an exported file, and colour those of each block alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from kinds import converted
from PIL import Image
from reference import randomise_routers

import dggraph
from dggraph.errors import ExportError
from dggraph.exporting.node_ids import find_operations, name_operations
from dggraph.views.node_data import write_node_data
from dggraph.views.picture import picture_difference, picture_path


def names_in(file: Path) -> dict[str, set[str]]:
    """Node name -> modules that it belongs to, as a viewer reads an exported program."""
    program = torch.export.load(file)
    return {
        fx_node.name: {name for name, _ in fx_node.meta.get("nn_module_stack", {}).values()}
        for fx_node in program.graph.nodes
    }


@pytest.mark.parametrize("kind", ["kept", "lifted"])
def test_ids_are_those_of_an_exported_file(kind: Any, tmp_path: Path) -> None:
    """Every operation of a block's modules is named, and no operation twice."""
    net = converted(kind, "node")
    content, found = name_operations(net)
    (tmp_path / "net.pt2").write_bytes(content)
    written = names_in(tmp_path / "net.pt2")
    blocks = [
        node
        for stage in net.graph.stages
        for node in net.graph.nodes(stage)
        if node.kind == "block"
    ]
    assert set(found) == {block.name for block in blocks}
    every = [name for names in found.values() for name in names]
    assert len(set(every)) == len(every)
    assert set(every) <= set(written)
    for block in blocks:
        own = {
            name
            for name, modules in written.items()
            if any(one.startswith(f"{block.module_path}.") for one in modules)
        }
        assert own
        assert own <= set(found[block.name])
        assert not any(
            one.startswith("dg_") for name in found[block.name] for one in written[name]
        ), "routers are not in a block"


def test_no_shape_in_the_file_is_open(tmp_path: Path) -> None:
    """Model Explorer cannot open programs with symbolic sizes."""
    content, _ = name_operations(converted("kept", "node"))
    (tmp_path / "net.pt2").write_bytes(content)
    program = torch.export.load(tmp_path / "net.pt2")
    assert program.range_constraints == {}
    (x,) = program.example_inputs[0]
    assert x.shape == (1, 3, 16, 16)


def test_values_are_the_marks_of_the_path() -> None:
    net = randomise_routers(converted("kept", "node"), seed=3)
    first, second = dggraph.record(net, 3 * torch.randn(2, 3, 16, 16)).paths
    ids = name_operations(net).operations
    for picture, words in (
        (picture_path(net.graph, first), {"used", "reached, unused", "never reached"}),
        (
            picture_difference(net.graph, first, second),
            {"only in the first", "only in the second", "in both", "in neither"},
        ),
    ):
        document = json.loads(write_node_data(picture, ids))
        assert set(document) == {"name", "results"}
        assert set(document["results"]) == {name for names in ids.values() for name in names}
        assert {one["value"] for one in document["results"].values()} <= words
    useful = first.useful_nodes(net.graph)
    document = json.loads(write_node_data(picture_path(net.graph, first), ids))
    for block, names in ids.items():
        values = {document["results"][name]["value"] for name in names}
        assert (values == {"used"}) == (block in useful)


def test_blocks_that_are_not_in_a_program_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    program = torch.export.export(torch.nn.Sequential(torch.nn.ReLU()), (torch.rand(2, 3),))
    assert find_operations(program, {"a": "0", "b": "elsewhere"}) == {"a": ("relu",)}
    monkeypatch.setattr("dggraph.exporting.node_ids.find_operations", lambda *_args: {})
    with pytest.raises(ExportError, match="no block of this network can be found"):
        name_operations(converted("kept", "node"))


def test_the_command_writes_a_file_for_each_image(capsys: Any, tmp_path: Path) -> None:
    Image.new("RGB", (30, 30), "red").save(tmp_path / "a.png")
    code, out, _ = run(
        capsys, "paths", "small:Net", "--input-size", "16", str(tmp_path / "a.png"), "--format",
        "model-explorer", "-o", str(tmp_path / "out"), "--json",
    )  # fmt: skip
    assert code == 0
    (row,) = json.loads(out)["images"]
    document = json.loads(Path(row["picture"]).read_text())
    assert set(document["results"]) <= set(names_in(tmp_path / "out" / "network.pt2"))
    assert document["name"] == "a.png"
    assert {one["value"] for one in document["results"].values()} == {"used"}


def test_a_difference_alone_has_its_program_beside_it(capsys: Any, tmp_path: Path) -> None:
    for name in ("red", "blue"):
        Image.new("RGB", (30, 30), name).save(tmp_path / f"{name}.png")
    code, _, err = run(
        capsys, "paths", "small:Net", "--input-size", "16", "--diff", str(tmp_path / "red.png"),
        str(tmp_path / "blue.png"), "--format", "model-explorer", "-o", str(tmp_path / "d.json"),
    )  # fmt: skip
    assert code == 0, err
    document = json.loads((tmp_path / "d.json").read_text())
    assert set(document["results"]) <= set(names_in(tmp_path / "network.pt2"))
