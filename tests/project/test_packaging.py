"""What is installed: the wheel has everything that the package reads, says its version once, and is
what these tests run on.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

import dggraph

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_tests_run_on_the_installed_package() -> None:
    installed = distribution("dggraph")
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable") or not installed.files:
        pytest.skip("dggraph is installed in editable mode")
    expected = Path(str(installed.locate_file("dggraph"))).resolve()
    assert Path(dggraph.__file__).parent.resolve() == expected, (
        "run `pytest`, not `python -m pytest`, which puts the source tree first"
    )


def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    tree = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "dggraph").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert packed == tree
    data = {Path(name).suffix for name in packed}
    assert data >= {".py", ".typed", ".cpp", ".css", ".toml", ".safetensors", ".png", ".json"}


def test_the_version_has_one_source(wheel: zipfile.ZipFile) -> None:
    metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = wheel.read(metadata).decode().splitlines()
    assert f"Version: {dggraph.__version__}" in lines
    assert version("dggraph") == dggraph.__version__
    cited = re.search(r"(?m)^version: (.+)$", (ROOT / "CITATION.cff").read_text())
    assert cited is not None
    assert cited[1] == dggraph.__version__
    changes = re.findall(r"(?m)^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text())
    assert changes[:1] in ([], [dggraph.__version__])


def test_the_wheel_works_away_from_the_source(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Nothing is read from outside the package: the demo's network, its images, the page."""
    wheel.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    where = "import dggraph; print(dggraph.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert Path(found.stdout.strip()).is_relative_to(tmp_path / "site"), found.stderr
    demo = [sys.executable, "-m", "dggraph", "demo", "-o", "demo"]
    done = subprocess.run(demo, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "<svg" in (tmp_path / "demo" / "report.html").read_text()


def build_with_kernels(folder: Path, **environment: str) -> tuple[zipfile.ZipFile, str]:
    """A wheel whose build was asked for kernels, and what the build said."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    asked = {**os.environ, "DGGRAPH_BUILD_KERNELS": "1", **environment}
    done = subprocess.run(build, cwd=ROOT, env=asked, capture_output=True, text=True, check=True)
    return zipfile.ZipFile(next(folder.glob("*.whl"))), done.stdout + done.stderr


def test_a_wheel_without_a_compiler_is_built_without_kernels(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    """With a word on why, and for every platform as always."""
    found, said = build_with_kernels(tmp_path, CXX="/no/compiler")
    assert "the C++ kernels are left out: KernelError: " in said
    assert "--no-build-isolation" in said
    assert found.filename is not None
    assert found.filename.endswith("-py3-none-any.whl")
    assert sorted(found.namelist()) == sorted(wheel.namelist())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here")
def test_a_wheel_with_kernels_uses_them_wherever_it_is_installed(tmp_path: Path) -> None:
    found, _ = build_with_kernels(tmp_path / "wheel")
    assert found.filename is not None
    assert "any" not in found.filename
    site, cache = tmp_path / "site", tmp_path / "cache"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(site), found.filename], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(cache)}
    environment.pop("DGGRAPH_KERNELS", None)

    def doctor() -> str:
        ask = [sys.executable, "-m", "dggraph", "doctor", "--json"]
        done = subprocess.run(
            ask, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return str(json.loads(done.stdout)["kernels"])

    assert doctor().startswith(f"built with the package: {site}")
    (library,) = site.rglob("*.so")
    library.write_bytes(library.read_bytes()[:1000])
    assert doctor() == "not built (dggraph doctor --build-kernels)"
    assert not cache.exists()
