"""`dggraph doctor`: what is installed, what is missing, and the command that brings it."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version

import click

from dggraph.cli.options import as_json, working

PACKAGES = ("torch", "torchvision", "networkx", "graphviz", "safetensors", "pydantic")
EXTRAS = {
    "timm": "pip install 'dggraph[timm]'",
    "graphviz-pure": "pip install 'dggraph[dot]'",
    "scikit-image": "pip install 'dggraph[photos]'",
}


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

    from dggraph.ops import device_kernels, kernels
    from dggraph.views.drawing import dot_command

    if build_kernels:
        with working("Compiling the C++ kernels"):
            kernels.build()
    facts: dict[str, str] = {
        "python": platform.python_version(),
        "dggraph": _version("dggraph") or "?",
    }
    facts |= {name: _version(name) or "missing" for name in PACKAGES}
    facts |= {name: _version(name) or f"not installed ({how})" for name, how in EXTRAS.items()}
    facts["drawing program"] = (
        dot_command() or "none: install graphviz, or pip install 'dggraph[dot]'"
    )
    facts["kernels"] = kernels.status()
    facts["threads"] = str(torch.get_num_threads())
    facts["accelerator"] = "cuda" if torch.cuda.is_available() else "none"
    if torch.cuda.is_available():
        facts["GPU kernels"] = device_kernels.why_not(torch.device("cuda", 0)) or "used"
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
