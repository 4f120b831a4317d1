"""The card for people: its programs run literally with one runtime alone, and no name in it becomes markup."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from short_study import INSTALLED, Taken

import orchestrator
from orchestrator import Study
from orchestrator.takeout import take_out
from orchestrator.takeout.readme import fenced, printable, readme, verbatim
from orchestrator.takeout.scripts import TITLES
from orchestrator.training.datasets import load

HOSTILE = "`x`` <img src=x onerror=alert(1)>\n# [a](http://b.example) | <b> www.c.example\x1b[31m\u202e"
DIGITS = load("digits")
OTHERS = ("orchestrator", "onnx", "onnxruntime", "onnxscript", "safetensors", "torchvision")
PROGRAMS = [
    pytest.param("pt2", {"torch"}, OTHERS),
    pytest.param(
        "onnx",
        {"numpy", "onnxruntime"},
        ("orchestrator", "onnx", "torch"),
        marks=pytest.mark.skipif(not INSTALLED, reason="the extra `export` is not installed"),
    ),
    pytest.param("safetensors", {"orchestrator", "torch"}, ("onnx", "onnxruntime", "ray")),
]
# runs a program that cannot import what it must not need
ALONE = """
import json, runpy, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
runpy.run_path("program.py")
print(json.dumps([name for name, module in sys.modules.items() if module is not None]), file=sys.stderr)
"""


def sections(card: str) -> dict[str, str]:
    """Title -> the Python program under it."""
    return dict(re.findall(r"^### (.+?)\n\n```python\n(.*?)```$", card, flags=re.DOTALL | re.MULTILINE))


@pytest.fixture
def folder(taken: Taken, tmp_path: Path) -> Path:
    """A copy of the exported folder, with the test split of the data beside it."""
    folder = shutil.copytree(taken.folder, tmp_path / "model")
    test = DIGITS.test
    for name, tensor in (("pictures", test.images), ("labels", test.labels)):
        torch.save(tensor, folder / f"{name}.pt")
        np.save(folder / f"{name}.npy", tensor.numpy())
    return folder


@pytest.mark.parametrize(("form", "imports", "barred"), PROGRAMS)
def test_each_program_reaches_the_test_accuracy_that_the_card_says(
    taken: Taken, folder: Path, form: str, imports: set[str], barred: tuple[str, ...]
) -> None:
    program = sections((folder / "README.md").read_text())[TITLES[form]]
    names = {name for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Import) for name in node.names}
    assert {name.name for name in names} == imports
    assert "ImportFrom" not in ast.dump(ast.parse(program))
    (folder / "program.py").write_text(program)
    isolated = [] if "orchestrator" in imports else ["-I"]
    root = str(Path(orchestrator.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, *isolated, "-c", ALONE, json.dumps(barred)],
        cwd=folder, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (said,) = re.findall(r"# (\S+) on the test split", program)
    (file,) = [file for file in taken.figures.files if file.format == form]
    assert float(done.stdout) == float(said) == file.test_accuracy == taken.figures.test_accuracy
    loaded = {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}
    assert not loaded & set(barred)
    assert loaded >= imports


def test_the_card_states_what_one_must_know(taken: Taken) -> None:
    card, figures = (taken.folder / "README.md").read_text(), taken.figures
    stated = [
        f"| accuracy (validation split, 360 pictures) | {figures.accuracy:.4f} | {figures.dense_accuracy:.4f} |",
        f"| test_accuracy (test split, 359 pictures) | {figures.test_accuracy:.4f} |  |",
        "flops are multiply-accumulates of convolutions and linear layers, batch 1; biases and norms not counted.",
        "test_accuracy was measured once, when this folder was written: the search never looked at the test split",
        "This is the end of the way",
        "latency_ms (a batch of 4, 1 threads)",
        "latency_ms during the search (a batch of 4)",
        "uint8 [N, 1, 8, 8], 0 to 255 (`scikit-learn's greys, 0 to 16, times 255 / 16, rounded`)",
        f"- mean: {DIGITS.mean[0]!r}",
        f"- std: {DIGITS.std[0]!r}",
        f"fingerprint `{DIGITS.fingerprint}`",
        "| `oicsr` | 0.01 | 0.6 | 1 |",
        f"key `{figures.origin.key}`, seed 0",
        f"orchestrator export small --key {figures.origin.key} --output DIR",
        "| `conv1` |",
        "- Short training: 1 epochs of recovery after the last cut",
        "- One seed.",
        "- Not verified: ",
    ]
    assert [text for text in stated if text not in card] == []


def rendered(card: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(card)


def tags(card: str) -> list[str]:
    return re.findall(r"<(\w+)", rendered(card))


def test_names_from_outside_are_shown_and_never_obeyed(taken: Taken) -> None:
    plain = taken.figures
    origin = plain.origin.model_copy(update={"study": HOSTILE, "commit": HOSTILE})
    layers = (plain.layers[0].model_copy(update={"name": HOSTILE}), *plain.layers[1:])
    data = plain.data.model_copy(update={"name": HOSTILE})
    known = plain.preprocessing.model_copy(update={"prepared": HOSTILE})
    hostile = plain.model_copy(
        update={"origin": origin, "layers": layers, "data": data, "preprocessing": known, "method": HOSTILE}
    )
    assert tags(readme(hostile)) == tags(readme(plain))
    assert rendered(readme(hostile)).count("&lt;img src=x onerror=alert(1)&gt;") == 8
    assert not {"\x1b", "\u202e"} & set(readme(hostile))
    assert list(sections(readme(hostile)).values()) == list(sections(readme(plain)).values())


def test_a_study_of_a_hostile_name_is_exported(copied: Callable[[str], Study], pruned_key: str, tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "")
    take_out(copied(name), pruned_key, tmp_path / "out", formats=["safetensors"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "img" not in tags(card)
    assert f"- study {verbatim(name)}, which had 2 points" in card
    assert json.loads((tmp_path / "out" / "figures.json").read_text())["origin"]["study"] == name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "`plain`"),
        ("a`b", "``a`b``"),
        ("`a``", "``` `a`` ```"),
        (" a", "`  a `"),
        ("", "`  `"),
        ("two\nlines", "`two?lines`"),
    ],
)
def test_verbatim(text: str, shown: str) -> None:
    assert verbatim(text) == shown
    if text.strip():
        assert rendered(verbatim(text)) == f"<p><code>{printable(text)}</code></p>\n"


def test_a_block_of_code_is_not_ended_by_what_is_in_it() -> None:
    assert fenced("a\n````\nb\n", "sh") == "`````sh\na\n````\nb\n`````"
