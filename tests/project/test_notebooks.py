"""The notebooks run as they are, in a kernel of their own, offline; what they print is right."""

import re
import shutil
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="notebooks run with nbclient")
nbformat = pytest.importorskip("nbformat", reason="notebooks are read with nbformat")

NOTEBOOKS = Path(__file__).resolve().parents[2] / "examples" / "notebooks"


def printed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a notebook in `folder`; return all that its cells print, the kinds of results too."""
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    monkeypatch.setenv("HOME", str(folder))  # where Jupyter keeps its own files
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(str(one.get("text", "")) + " ".join(one.get("data", {})) for one in outputs)


@pytest.fixture
def hub(mobilenet_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of downloaded weights, as torch keeps them."""
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(mobilenet_checkpoint, folder / "mobilenet_v2-b0353104.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.mark.usefixtures("hub")
def test_convert_and_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed("1_convert_and_look.ipynb", tmp_path, monkeypatch)
    assert re.search(r"7[0-9]\.\d%  Egyptian cat", text)
    assert text.count("text/html") == 2
    assert len(re.findall(r"[\d.]+ of the backbone's MACs", text)) == 2


def test_train_within_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed("2_train_within_a_budget.ipynb", tmp_path, monkeypatch)
    accuracies = [float(one) for one in re.findall(r"accuracy ([\d.]+)%", text)]
    assert len(accuracies) == 12
    assert accuracies[-1] > 70  # one in three by chance
    assert float(re.findall(r"paths; MACs ratio ([\d.]+)", text)[0]) < 0.9
    assert text.count("text/html") == 2


@pytest.mark.usefixtures("hub")
def test_deploy_with_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="the notebook runs what it exports")
    text = printed("3_deploy_with_onnxruntime.ipynb", tmp_path, monkeypatch)
    lines = re.findall(r"MACs ratio ([\d.]+), +[\d.]+ ms, largest difference ([\d.e-]+)", text)
    assert len({ratio for ratio, _ in lines}) > 1  # photos take different paths
    assert len(lines) == 4
    assert all(float(difference) < 1e-3 for _, difference in lines)  # logits of 10 or so
