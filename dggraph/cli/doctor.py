"""`dggraph doctor`: what is installed, what is missing, and the command that brings it."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version

import click

from dggraph.cli.options import as_json, working

PACKAGES = (
    "torch", "torchvision", "numpy", "pillow", "networkx", "graphviz", "click", "rich",
    "safetensors", "pydantic", "jinja2", "filelock",
)  # fmt: skip
EXTRAS = {
    "timm": ("timm",),
    "dot": ("graphviz-pure",),
    "kernels": ("ninja",),
    "photos": ("scikit-image",),
    "tensorboard": ("tensorboard",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "hub": ("huggingface_hub",),
    "detection": ("faster-coco-eval",),
    "view": ("flask", "waitress"),
}
"""The optional packages, by the extra that brings them."""


@click.command()
@click.option(
    "--build-kernels",
    is_flag=True,
    help="Compile the optional C++ kernels for this CPU first; takes a minute.",
)
@as_json
def command(build_kernels: bool, as_json: bool) -> None:
    """Check this installation."""
    import torch

    import dggraph
    from dggraph.ops import device_kernels, kernels
    from dggraph.views.drawing import dot_command

    if build_kernels:
        with working("Compiling the C++ kernels"):
            kernels.build()
    facts: dict[str, str] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "dggraph": dggraph.__version__,
    }
    facts |= {name: _version(name) or "missing" for name in PACKAGES}
    for extra, names in EXTRAS.items():
        how = f"not installed (pip install 'dggraph[{extra}]')"
        facts |= {name: _version(name) or how for name in names}
    facts["torch"] = torch.__version__  # which tells builds apart, and metadata may not
    facts["drawing program"] = (
        dot_command() or "none: install graphviz, or pip install 'dggraph[dot]'"
    )
    facts["kernels"] = kernels.status()
    facts["threads"] = str(torch.get_num_threads())
    facts["accelerator"] = "cuda" if torch.cuda.is_available() else "none"
    facts["GPU kernels"] = (
        device_kernels.why_not(torch.device("cuda", 0)) or "used"
        if torch.cuda.is_available()
        else "no GPU"
    )
    if as_json:
        click.echo(json.dumps(facts))
    else:
        width = max(map(len, facts))
        click.echo("\n".join(f"{name:{width}}  {value}" for name, value in facts.items()))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
