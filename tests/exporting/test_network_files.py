"""Files that `dggraph.export` writes: compared before they are kept, and nothing left of others."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from kinds import converted
from reference import randomise
from small import Net
from torch import Tensor

import dggraph
from dggraph.errors import CheckError, InputError, MissingExtraError
from dggraph.exporting import formats

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="ONNX files need dggraph[export]",
)


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 16, 16) + 2 * torch.randn(count, 3, 1, 1)


@pytest.fixture(scope="module")
def net() -> Any:
    return converted("lifted", "stage")


@needs_onnx
def test_skip_is_one_if_a_block(net: Any, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    report = dggraph.export(net, tmp_path / "net.onnx", mode="skip", images=images())
    assert (report.num_conditions, report.num_images) == (3, 6)
    assert 1 <= report.num_skipped <= 3
    assert report.num_bytes == (tmp_path / "net.onnx").stat().st_size
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node].count("If") == 3
    assert "Conv" in {one.op_type for node in model.graph.node for a in node.attribute
                      for one in a.g.node}  # fmt: skip
    for node in model.graph.node:
        for branch in (one.g for one in node.attribute if node.op_type == "If"):
            own = {one.name for one in branch.initializer}  # else onnxruntime runs them slowly
            assert all(one.input[1] in own for one in branch.node if one.op_type == "Conv")
    assert str(Path(dggraph.__file__).parent).encode() not in model.SerializeToString()
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for image in images().split(1):
        (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), net(image), atol=1e-4, rtol=1e-4)
    assert "3 conditions" in str(report)
    assert f"blocks that an image skipped: {report.num_skipped} of 3" in str(report)


@needs_onnx
def test_dense_takes_any_batch_and_says_that_it_saves_nothing(net: Any, tmp_path: Path) -> None:
    import onnxruntime

    report = dggraph.export(net, tmp_path / "net.onnx")
    assert report.num_conditions == 0
    assert "saves no time" in str(report)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for count in (1, 5):
        x = images(count)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), net(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["dense", "skip"])
def test_exported_programs_of_prepared_networks(net: Any, mode: Any, tmp_path: Path) -> None:
    fast, x = dggraph.optimize_for_inference(net), images()
    report = dggraph.export(fast, tmp_path / "net.pt2", format="pt2", mode=mode, images=x)
    assert report.num_conditions == (3 if mode == "skip" else 0)
    program = torch.export.load(tmp_path / "net.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(x[:1]), net(x[:1]), atol=1e-4, rtol=1e-3)


def test_what_gives_another_answer_is_not_kept(
    net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "net.pt2"
    file.write_bytes(b"before")
    right = formats._pt2

    def wrong(program: Any) -> Any:
        written = right(program)
        return formats.Written(
            content=written.content,
            run=lambda x: [one + 1e-2 for one in written.run(x)],
            num_conditions=0,
            opset=None,
        )

    monkeypatch.setattr(formats, "_pt2", wrong)
    with pytest.raises(CheckError, match=r"other answers than the network for 6 of 6 images"):
        dggraph.export(net, file)  # its suffix names the format
    assert file.read_bytes() == b"before"
    assert [one.name for one in tmp_path.iterdir()] == ["net.pt2"]


@needs_onnx
def test_what_cannot_be_opened_is_a_check_that_failed() -> None:
    with pytest.raises(CheckError, match="onnxruntime cannot open"):
        formats.onnx_runner(b"no model")


def test_the_command_ends_with_3_where_a_check_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise CheckError("the file gives other answers.")

    monkeypatch.setattr("dggraph.exporting.network_files.export", refuse)
    file = tmp_path / "net.onnx"
    code, out, err = run(capsys, "export", "dggraph:resnet20_8", "-o", str(file))
    assert (code, out) == (3, "")
    assert "other answers" in err
    assert not file.exists()


@needs_onnx
def test_the_command_compares_and_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "net.onnx"
    words = ("dggraph:resnet8_8", "-o", str(file), "--rounds", "3", "--json")
    code, out, err = run(capsys, "export", *words)
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert [row["name"] for row in document["latency"]] == ["static", "dense"]
    assert document["num_conditions"] == 0
    assert document["outputs"][0]["shape"] == [1, 10]
    assert document["weights_origin"] == "random"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format": "tflite"}, "format='tflite' is not one of onnx, pt2"),
        ({"format": ""}, "format='' is not one of onnx, pt2"),
        ({"format": "onnx"}, "'net.pt2' is named like a file of another format"),
        ({"file": "net.ONNX"}, "'net.ONNX' is named like a file of another format"),
        ({"mode": "cond"}, "mode='cond' is not one of dense, skip"),
        (
            {"images": torch.zeros(1, 4, 16, 16)},
            r"a batch \(B, 3, H, W\) of at least one, got \(1, 4",
        ),
        ({"file": "."}, "is a folder"),
        ({"file": "missing/net.pt2"}, "folder that does not exist"),
        ({"net": Net()}, "takes a converted network, not Net"),
    ],
)
def test_arguments_that_are_refused(
    net: Any, change: dict[str, Any], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"net": net, "file": "net.pt2", "format": "pt2"} | change
    with pytest.raises(InputError, match=error):
        dggraph.export(given.pop("net"), given.pop("file"), **given)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(
    net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dggraph\[export\]'"):
        dggraph.export(net, tmp_path / "net.onnx")


def test_other_types_of_weights(net: Any, tmp_path: Path) -> None:
    double = converted("lifted").double()
    with pytest.raises(InputError, match=r"torch.float64.*Export net.float\(\)"):
        dggraph.export(double, tmp_path / "net.onnx")
    report = dggraph.export(double, tmp_path / "net.pt2", format="pt2", mode="skip")
    assert report.outputs[0].dtype == "float64"
    assert report.outputs[0].difference <= 1e-10


def test_a_baseline_has_no_blocks_to_skip(tmp_path: Path) -> None:
    baseline = dggraph.baselines.squeeze_excitation(randomise(Net()), images(1))
    with pytest.raises(InputError, match="no blocks that an image may skip"):
        dggraph.export(baseline, tmp_path / "net.pt2", format="pt2", mode="skip")
    report = dggraph.export(baseline, tmp_path / "net.pt2", format="pt2")
    assert (report.num_paths, report.num_conditions) == (0, 0)


def test_modes_and_values_stay(net: Any, tmp_path: Path) -> None:
    net.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    try:
        dggraph.export(net, tmp_path / "net.pt2", format="pt2", mode="skip")
        assert all(module.training for module in net.modules())
    finally:
        net.eval()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_what_is_set_around_the_calls_does_not_matter(net: Any, tmp_path: Path) -> None:
    """Another default device, as in notebooks that work on a GPU, autocast and inference mode."""
    x = images()
    path = dggraph.record(net, x).paths[0]
    expected = dggraph.static(net, path)(x)
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        report = dggraph.export(net, tmp_path / "net.pt2")
        plain = dggraph.static(net, path)
    assert report.num_images == 6
    assert report.outputs[0].difference <= 1e-5
    assert torch.equal(plain(x), expected)
    plain(x).sum().backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())
