"""`orchestrator methods`."""

from typing import Annotated, Any

import typer

from orchestrator.tables import print_table


def methods(
    name: Annotated[str | None, typer.Argument(help="One of them, for its options.", show_default=False)] = None,
) -> None:
    """The pruning methods that a search space may name, or what the options of one are."""
    from orchestrator.methods import METHODS, method_named

    if name is None:
        rows = [(one.name, _yes(one.penalty), _yes(one.repair_), one.source) for one in METHODS.values()]
        print_table(("method", "penalty", "repairs", "source"), rows)
        typer.echo("next: orchestrator methods NAME  # its options")
        return
    from orchestrator.methods.words import in_words

    method = method_named(name)
    typer.echo(f"{method.name}: {method.source}\n")
    typer.echo("method_options, in [trial] or [trial.method_options]; varied, in [search.method_options]")
    for option in in_words(method.options):
        typer.echo(f"\n{option.name} = {option.default}  ({option.values.replace('`', '')})\n  {option.meaning}")


def _yes(answer: Any) -> str:
    return "no" if answer is None else "yes"
