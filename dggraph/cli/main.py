"""The `dggraph` command: finds the subcommand, turns errors into one line and an exit code.

Exit codes: 0 fine, 2 usage, 3 a check did not hold, 4 bad input or archive, runs of a comparison
that failed, or anything unforeseen (DGGRAPH_TRACEBACK=1 shows where), 130 interrupted. Subcommands
are imported when called: `--help` needs no torch.
"""

import difflib
import json
import os
import signal
import sys
from importlib import import_module

import click

from dggraph.cli.causes import explain
from dggraph.cli.options import FAILED, INTERRUPTED
from dggraph.cli.streams import steady_streams
from dggraph.errors import CheckError, DggraphError

COMMANDS = {
    "inspect": "What a backbone becomes: stages, edges, MACs, what stays static.",
    "convert": "Convert a backbone and save the archive.",
    "paths": "Draw the path that each image takes.",
    "train": "Train from a configuration, or continue a run.",
    "compare": "Train many methods by one recipe and many seeds, and say which is best.",
    "eval": (
        "Accuracy or average precision, MACs and paths on a data set; budgets; what each block is"
        " worth."
    ),
    "atlas": "Report on the paths of a whole set of images.",
    "view": "A page on which to drop photos, move the threshold and compare paths.",
    "export": "Write a network as a file for other runtimes, run it again and compare.",
    "thin": "Take blocks out of a backbone until a MACs budget is met: a smaller static network.",
    "bench": "Time a converted network beside its static backbone.",
    "models": "List the model names.",
    "doctor": "Say what is installed, and what is missing.",
    "demo": "A small trained network, its paths on twenty images, and a report.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            close = difflib.get_close_matches(cmd_name, COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"No such command {cmd_name!r}.{hint}")
        command: click.Command = import_module(f"dggraph.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dggraph")
def cli() -> None:
    """Turn any static vision backbone into a dynamic graph network.

    MODEL is a name (`resnet50` of torchvision, `timm:regnety_008`, `dggraph:resnet20_8`,
    `package.module:function`), an archive, or the folder of a run.
    """


def main(args: list[str] | None = None) -> None:
    """Entry point of the `dggraph` script."""
    arguments = sys.argv[1:] if args is None else args
    with steady_streams() as lost:
        code = _run(arguments)
    if lost and code == 0:
        click.echo(
            f"dggraph: what was printed is lost: {lost[0].strerror or lost[0]}. Make room, and give"
            " the command again.",
            err=True,
        )
        code = FAILED
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Run a command, and tell how it failed; returns the exit code."""
    try:
        code = cli.main(arguments or ["--help"], prog_name="dggraph", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _report(arguments, "Interrupted", "interrupted. What was saved before still holds.")
        return INTERRUPTED
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        way_out = f" ({context.command_path} --help)" if context is not None else ""
        _report(arguments, "UsageError", f"{error.format_message()}{way_out}")
        return 2
    except DggraphError as error:
        _report(arguments, type(error).__name__, str(error))
        return 3 if isinstance(error, CheckError) else FAILED
    except Exception as error:
        if os.environ.get("DGGRAPH_TRACEBACK"):
            raise
        kind, message = explain(error) or _unforeseen(error)
        _report(arguments, kind, message)
        return FAILED


def _unforeseen(error: Exception) -> tuple[str, str]:
    kind, text = type(error).__name__, " ".join(str(error).split())
    return kind, f"{kind}: {text[:300]}. DGGRAPH_TRACEBACK=1 shows where; please report it."


def _report(arguments: list[str], kind: str, message: str) -> None:
    if "RANK" not in os.environ:
        _tell(arguments, kind, message)
        return
    from dggraph.system.processes import is_reporting_rank

    # torchrun ends the others once one process has failed: not before this one has spoken
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        if is_reporting_rank(message, is_consequence=kind == "LostProcessError"):
            _tell(arguments, kind, message)
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


def _tell(arguments: list[str], kind: str, message: str) -> None:
    if "--json" in arguments and (
        os.environ.get("RANK", "0") == "0" or "TORCHELASTIC_RUN_ID" in os.environ
    ):
        click.echo(json.dumps({"error": {"type": kind, "message": message}}))
    else:
        click.echo(f"dggraph: {message}", err=True)
