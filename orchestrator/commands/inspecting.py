"""`orchestrator inspect`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.commands.arguments import DATA
from orchestrator.record import InvalidInput
from orchestrator.tables import print_network


def inspect(
    model: Annotated[str, typer.Argument(help="resnet56, torchvision:NAME, timm:NAME or package.module:function.")],
    *,
    dataset: Annotated[str | None, typer.Option(help="The data set whose pictures and classes it is made for.")] = None,
    input: Annotated[
        str | None, typer.Option(metavar="CxHxW", help="Or the pictures' size, such as 3x224x224.")
    ] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="How many classes, with --input.  [default: 1000]")] = None,
    data_root: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the downloaded data sets.")] = DATA,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
) -> None:
    """What can be pruned in a model, what cannot and why, and where its flops are."""
    if (dataset is None) == (input is None):
        raise InvalidInput("give either --dataset or --input")
    if dataset is not None and classes is not None:
        raise InvalidInput(f"--classes goes with --input; {dataset} has its own classes")
    if dataset is not None:
        from orchestrator.training.datasets import load

        data = load(dataset, root=data_root)
        shape, count = data.input_shape, data.classes
    else:
        shape, count = _input_shape(input or ""), classes or 1000
    report = _explain(model, shape, count)
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print_network(f"{model} on {'x'.join(map(str, shape))}, {count} classes", report)


def _input_shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InvalidInput(f"--input is {text!r}; give channels x height x width, such as 3x224x224")
    channels, height, width = map(int, parts)
    return channels, height, width


def _explain(name: str, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    import torch

    from orchestrator.network.architectures import build, check_runs

    model = build(name, classes=classes, input_shape=shape, seed=0).eval()
    check_runs(model, shape, classes=classes)
    from orchestrator.network.inspect import explain

    report: dict[str, Any] = explain(model, torch.zeros(1, *shape))
    return report
