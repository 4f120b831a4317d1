"""The `orchestrator` command: which commands there are, and how a user's mistake ends."""

from typing import Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from orchestrator.commands.asking import best, front, status
from orchestrator.commands.comparing import compare
from orchestrator.commands.confirming import confirm
from orchestrator.commands.describing import methods
from orchestrator.commands.exporting import export
from orchestrator.commands.inspecting import inspect
from orchestrator.commands.keeping import gc, ls, merge, rm
from orchestrator.commands.reporting import plot, report, watch
from orchestrator.commands.rerunning import rerun
from orchestrator.commands.searching import search
from orchestrator.commands.sensing import sensitivity
from orchestrator.commands.teaching import teach
from orchestrator.record import InvalidInput, first_problem

COMMANDS = (  # in the order that --help has
    search,
    teach,
    rerun,
    status,
    front,
    best,
    confirm,
    export,
    plot,
    compare,
    report,
    watch,
    inspect,
    methods,
    sensitivity,
    ls,
    gc,
    rm,
    merge,
)


class Commands(TyperGroup):
    """Ends a user's mistake with one line on stderr and exit code 2; every other error keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except ValidationError as error:
            _complain(f"{error.title}: {first_problem(error)}")
        except InvalidInput as error:
            _complain(str(error))
        raise typer.Exit(2)


app = typer.Typer(
    cls=Commands,
    help="What accuracy can a network have at every FLOPs budget? Search, then take the model that fits.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _command in COMMANDS:
    app.command()(_command)


def main() -> None:
    """The entry point of the `orchestrator` script."""
    app(prog_name="orchestrator")


def _complain(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
