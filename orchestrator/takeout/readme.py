"""The model card for people, README.md. Whatever a name holds, it is shown and never obeyed."""

import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator.collector.amounts import format_flops
from orchestrator.network.latency import Latency
from orchestrator.takeout.figures import ExportedFile, Figures, StageFacts
from orchestrator.takeout.scripts import TITLES, script

README_FILE = "README.md"

CARD = """\
# {title}

{summary}

{counts}

{counted}

{test}

## What it takes

- pictures: {pixels}{prepared}
- before the network: `(pictures - 255 * mean) / (255 * std)`, channel by channel, as float32 [N, {shape}]
- mean: {mean}
- std: {std}
- what it gives: float32 [N, {classes}], a score for each class; the highest is the answer
- classes: numbered as the data set numbers them

{told}

## Use it

Each program is started in this folder and needs nothing of the others. pictures and labels are yours.

{programs}
## How it was found

{settings}

{path}

## Files

{files}

difference: of the worst output from the network in memory, relative to the largest, over random pictures.

## Widths

{widths}

## Limits

{limits}
"""


COUNTED = (
    "flops are multiply-accumulates of convolutions and linear layers, batch 1; biases and norms not counted. accuracy "
    "is top-1 on the validation split, by which the search chose: the best of many is an optimistic figure."
)


def readme(figures: Figures) -> str:
    """The text of README.md: all that figures.json says, and how the model is run."""
    data, shape = figures.data, ", ".join(map(str, figures.input_shape))
    prepared = figures.preprocessing.prepared
    share = f", pruned to {figures.flops_kept:.4f} of its flops" if figures.iterations else ", not pruned"
    return CARD.format(
        title=f"{verbatim(figures.model)}{share}",
        summary=f"Sorts {' x '.join(map(str, figures.input_shape))} pictures into {data.classes} classes. Trained on "
        f"{verbatim(data.name)}.",
        counts=_counts(figures),
        counted=COUNTED,
        test=_test(figures),
        pixels=f"uint8 [N, {shape}], 0 to 255",
        prepared=f" ({verbatim(prepared)})" if prepared else "",
        shape=shape,
        mean=", ".join(map(repr, figures.preprocessing.mean)),
        std=", ".join(map(repr, figures.preprocessing.std)),
        classes=data.classes,
        told=_told(figures.files),
        programs="\n".join(
            f"### {title}\n\n{fenced(script(form, figures), 'python')}\n"
            for form, title in TITLES.items()
            if form in {file.format for file in figures.files}
        ),
        settings=_settings(figures),
        path=_path(figures),
        files=_table(
            ["file", "bytes", "difference", "test_accuracy", "SHA-256"],
            [
                [verbatim(f.file), f"{f.bytes:,}", f"{f.difference:.1e}", f"{f.test_accuracy:.4f}", verbatim(f.sha256)]
                for f in figures.files
            ],
        ),
        widths=_table(
            ["layer", "channels", "dense", "flops", "dense"],
            [
                [verbatim(x.name), x.channels or "-", x.dense_channels or "-", _flops(x.flops), _flops(x.dense_flops)]
                for x in figures.layers
            ],
        ),
        limits="\n".join(f"- {limit}" for limit in figures.limits),
    )


def verbatim(text: str) -> str:
    """A text from outside as Markdown shows it letter by letter: nothing in it is markup, a link, HTML or a break."""
    shown = printable(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    gap = " " if shown[:1] in ("`", " ", "") or shown[-1:] == "`" else ""
    return f"{ticks}{gap}{shown}{gap}{ticks}"


def printable(text: str) -> str:
    """Without line breaks, terminal codes and marks that turn the direction of writing."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def fenced(text: str, language: str) -> str:
    """A block of code that no line in it can end."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text}{ticks}"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _milliseconds(found: Latency) -> str:
    return f"{found.latency_ms:.3f} ({found.p10_ms:.3f} to {found.p90_ms:.3f})"


def _flops(value: int) -> str:
    return format_flops(value)


def _counts(figures: Figures) -> str:
    data = figures.data
    dense = "" if figures.dense_accuracy is None else _share(figures.dense_accuracy)
    rows = [
        ["flops", _flops(figures.flops), _flops(figures.dense_flops)],
        ["flops_kept", f"{figures.flops_kept:.4f}", "1"],
        ["params", _flops(figures.params), _flops(figures.dense_params)],
        [f"accuracy (validation split, {data.validation} pictures)", _share(figures.accuracy), dense],
        [f"test_accuracy (test split, {data.test} pictures)", f"{figures.test_accuracy:.4f}", ""],
    ]
    if figures.accuracy_after_cut is not None:
        rows.insert(4, ["accuracy_after_cut (before recovery)", f"{figures.accuracy_after_cut:.4f}", ""])
    if (found := figures.confirmation) is not None:
        deviation = "" if found.test_accuracy_deviation is None else f" ± {found.test_accuracy_deviation:.4f}"
        rows.append([f"test_accuracy over {found.seeds} seeds", f"{found.test_accuracy_mean:.4f}{deviation}", ""])
    if (measured := figures.latency) is not None:
        under = f"latency_ms (a batch of {measured.pruned.batch}, {measured.pruned.threads} threads)"
        rows.append([under, *(_milliseconds(found) for found in (measured.pruned, measured.dense))])
    if (during := figures.search_latency) is not None:
        rows.append([f"latency_ms during the search (a batch of {during.batch})", f"{during.latency_ms:.3f}", ""])
    return _table(["", "this model", "dense"], rows)


def _test(figures: Figures) -> str:
    if figures.confirmation is None:
        said = (
            "test_accuracy was measured once, when this folder was written: the search never looked at the test split, "
            "and nothing was chosen by it. This is the end of the way: who exports several models and chooses by "
            "test_accuracy has no test any more."
        )
    else:
        optimism = figures.confirmation.optimism
        too = " It was trained on the validation split, too." if figures.confirmation.with_validation else ""
        said = (
            "The point of the search was trained anew from fresh seeds; this is the model of the first of them, not of "
            f"the best.{too} test_accuracy is what was recorded of it then. The search was optimistic by "
            f"{optimism:+.4f} (its accuracy minus the mean test_accuracy)."
        )
    if figures.latency is not None:
        said += (
            f"\n\nlatency_ms: the median of {figures.latency.pruned.repeats} batches, and what eight in ten of them "
            f"took, under PyTorch, pruned and dense in turn, on {verbatim(figures.latency.machine)}."
        )
    return said


def _told(files: Sequence[ExportedFile]) -> str:
    where = {
        "safetensors": "`preprocessing` in `model.json`",
        "onnx": "`session.get_modelmeta().custom_metadata_map`",
        "pt2": '`torch.export.load(path, extra_files=told)` with `told = {"preprocessing": ""}`',
    }
    return f"The files say so themselves: {', '.join(where[file.format] for file in files)}."


def _settings(figures: Figures) -> str:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:g}"

    return _table(
        ["method", "regularization_weight", "pruning_ratio", "iterations"],
        [
            [
                verbatim(figures.method) if figures.method else "-",
                shown(figures.regularization_weight),
                shown(figures.pruning_ratio),
                figures.iterations,
            ]
        ],
    )


def _path(figures: Figures) -> str:
    origin = figures.origin
    lines = [
        f"- study {verbatim(origin.study)}, which had {origin.points} points when this one was chosen",
        f"- key {verbatim(origin.key)}, seed {origin.seed}",
        f"- data {verbatim(figures.data.name)}: {figures.data.train} train, {figures.data.validation} validation, "
        f"{figures.data.test} test pictures; fingerprint {verbatim(figures.data.fingerprint)}",
        f"- training: {_flops(origin.train_flops)} train_flops (forward flops x samples x 3)",
        f"- trained with {_versions(origin.trained_with)}, {origin.trained or 'time unknown'}, "
        f"commit {verbatim(origin.commit or 'unknown')}",
        f"- exported with {_versions(origin.exported_with)}, {origin.exported}",
        *(
            f"- code of its own, not in this folder: {verbatim(code.reference)}, SHA-256 of its file "
            f"{verbatim(code.sha256 or 'unknown')}; {_needed_by(code.reference, figures)}"
            for code in figures.code
        ),
    ]
    stages = _table(["stage", "epochs", "key"], [_stage(stage) for stage in origin.stages])
    again = ["orchestrator", "export", printable(origin.study), "--key", _point(figures), "--output", "DIR"]
    if figures.confirmation is not None:
        again.append("--confirmed")
    return "\n".join(lines) + f"\n\n{stages}\n\nAgain, from the study:\n\n{fenced(shlex.join(again) + chr(10), 'sh')}"


def _point(figures: Figures) -> str:
    return figures.origin.key if figures.confirmation is None else figures.confirmation.point


def _stage(stage: StageFacts) -> list[str]:
    schedule = next((stage.parameters[name] for name in ("schedule", "recovery") if name in stage.parameters), None)
    epochs = schedule.get("epochs", "-") if isinstance(schedule, dict) else "-"
    return [stage.kind, str(epochs), verbatim(stage.key)]


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {verbatim(version)}" for name, version in versions.items()) or "unknown versions"


def _needed_by(reference: str, figures: Figures) -> str:
    if reference != figures.model:
        return "it loads the data, and no form of the model needs it"
    return "model.json needs it to be loaded, model.onnx and model.pt2 do not"
