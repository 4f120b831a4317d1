"""The programs in the card of an exported model: each runs one form of it with its own runtime alone."""

from collections.abc import Sequence

from orchestrator.takeout.figures import Figures

BATCH = 500  # pictures at a time

TORCH = '''\
{imports}

network = {network}
mean = torch.tensor({mean}).view(-1, 1, 1)
std = torch.tensor({std}).view(-1, 1, 1)


def classify(pictures):
    """The classes, 0 to {last}, of uint8 pictures [N, {shape}], 0 to 255."""
    with torch.inference_mode():
        return network((pictures - 255 * mean) / (255 * std)).argmax(1)


pictures, labels = torch.load("pictures.pt"), torch.load("labels.pt")  # yours: uint8 [N, {shape}], int64 [N]
predicted = torch.cat([classify(part) for part in pictures.split({batch})])
print((predicted == labels).double().mean().item())  # {accuracy} on the test split
'''

ONNX = '''\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
mean = np.array({mean}, np.float32).reshape(-1, 1, 1)
std = np.array({std}, np.float32).reshape(-1, 1, 1)


def classify(pictures):
    """The classes, 0 to {last}, of uint8 pictures [N, {shape}], 0 to 255."""
    return session.run(None, {{"pictures": (pictures - 255 * mean) / (255 * std)}})[0].argmax(1)


pictures, labels = np.load("pictures.npy"), np.load("labels.npy")  # yours: uint8 [N, {shape}], int64 [N]
parts = [pictures[start : start + {batch}] for start in range(0, len(pictures), {batch})]
predicted = np.concatenate([classify(part) for part in parts])
print(float((predicted == labels).mean()))  # {accuracy} on the test split
'''

TITLES = {"pt2": "PyTorch alone", "onnx": "ONNX Runtime alone", "safetensors": "orchestrator"}
FILES = {"pt2": "model.pt2", "onnx": "model.onnx", "safetensors": "model.json"}


def script(form: str, figures: Figures) -> str:
    """The program that runs one form of the model, to be started in its folder."""
    (accuracy,) = [file.test_accuracy for file in figures.files if file.format == form]
    common = {
        "mean": _numbers(figures.preprocessing.mean),
        "std": _numbers(figures.preprocessing.std),
        "last": figures.data.classes - 1,
        "shape": ", ".join(map(str, figures.input_shape)),
        "batch": BATCH,
        "accuracy": accuracy,
    }
    if form == "onnx":
        return ONNX.format(file=FILES["onnx"], **common)
    if form == "pt2":
        return TORCH.format(imports="import torch", network=f'torch.export.load("{FILES["pt2"]}").module()', **common)
    allowed = f", allow_code=[{figures.model!r}]" if any(c.reference == figures.model for c in figures.code) else ""
    return TORCH.format(
        imports="import orchestrator\nimport torch", network=f'orchestrator.load("."{allowed})', **common
    )


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(map(repr, values))}]"
