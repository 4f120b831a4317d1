"""What trackers have written, read back by their own libraries: runs by name, "0" and up for trials, and "study"."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Run:
    """One run. `logged` counts how often a figure was written for a step: once, if nothing is written twice."""

    params: dict[str, str] = field(default_factory=dict)
    figures: dict[str, dict[int, float]] = field(default_factory=dict)
    logged: int = 0
    status: str | None = None
    reason: str | None = None
    keys: list[str] = field(default_factory=list)

    def add(self, name: str, step: int, value: float) -> None:
        self.figures.setdefault(name, {})[step] = value
        self.logged += 1


def from_tensorboard(root: Path) -> dict[str, Run]:
    """The runs under DIR/<study>."""
    folders = {path.name.removeprefix("trial-"): path for path in sorted(root.iterdir())}
    return {str(int(name)) if name.isdigit() else name: _event_files(path) for name, path in folders.items()}


def _event_files(folder: Path) -> Run:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    run = Run()
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            run.add(tag, event.step, event.value)
    if folder.name != "study":
        texts = {
            tag: [tensor_util.make_ndarray(event.tensor_proto)[0].decode() for event in events.Tensors(tag)]
            for tag in events.Tags()["tensors"]
            if tag.endswith("/text_summary")
        }
        run.keys = texts.get("key/text_summary", [])
        run.status, _, reason = texts["status/text_summary"][-1].partition(": ")
        run.reason = reason or None
        content = events.PluginTagToContent("hparams")
        start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
        run.params = {name: str(value.string_value or value.number_value) for name, value in start.hparams.items()}
        end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
        assert (end.status == 2) == (run.status == "failed")
    return run


def from_mlflow(uri: str, study: str) -> dict[str, Run]:
    """The runs of an experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(study)
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    runs = {one.data.tags["orchestrator.trial"]: _mlflow_run(client, one) for one in found}
    assert len(runs) == len(found)
    return runs


def _mlflow_run(client: Any, one: Any) -> Run:
    tags = one.data.tags
    keys = [tags[name] for name in sorted(tags) if name.startswith("key.")]
    run = Run(params=one.data.params, status=tags.get("status"), reason=tags.get("reason"), keys=keys)
    assert one.info.status == ("FAILED" if run.status == "failed" else "FINISHED")
    for name in one.data.metrics:
        for metric in client.get_metric_history(one.info.run_id, name):
            run.add(name, metric.step, metric.value)
    return run


def from_wandb(folder: Path) -> dict[str, Run]:
    """The runs of all offline files; one that was gone on with has several."""
    import json

    runs: dict[str, Run] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        run = runs.setdefault(path.stem.rpartition("-")[2], Run())
        for record in wandb_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run.params = {item.key: str(json.loads(item.value_json)) for item in record.run.config.update}
            elif kind == "history":
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                _wandb_row(run, row)
            elif kind == "summary":
                said = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.summary.update}
                run.status, run.reason = said.get("status", run.status), said.get("reason", run.reason) or None
    return runs


def _wandb_row(run: Run, row: dict[str, Any]) -> None:
    step = int(row["_step"])
    for name, value in row.items():
        if name == "key":
            run.keys.append(value)
        elif not name.startswith("_") and name not in ("iteration", "trials"):
            run.add(name, step, float(value))


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline file, by W&B's own message type: its framing is that of LevelDB's logs."""
    from wandb.proto import wandb_internal_pb2

    content, at, whole, block = path.read_bytes(), 7, b"", 32768
    assert content.startswith(b":W&B")
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several parts
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record
