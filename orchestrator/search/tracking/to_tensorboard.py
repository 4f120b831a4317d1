"""TensorBoard: a folder of event files for each trial, with its HParams tab.

By PyTorch's own writer. tensorboardX, which Ray brings along, would write the same files, but TensorBoard is needed
anyway to look at them, and to find out what an earlier launch has written. Figures have the seven digits of a float32:
TensorBoard leaves out those that its writers store as float64, unless it is told to load slowly.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.record import InvalidInput, Point, TrialSpec
from orchestrator.search.tracking.interface import (
    FIGURES,
    MILLION,
    About,
    Ended,
    Known,
    Standing,
    figures_of,
    seconds_of,
    settings_of,
    study_figures,
)
from orchestrator.store import StageStore

STUDY = "study"  # the folder of the whole study's figures
BY_COST = "over_train_Mflops"
FAILED_OR_NOT = {True: "STATUS_FAILURE", False: "STATUS_SUCCESS"}


class TensorBoard:
    """Writes to <folder>/<study>-<identity>/{study,trial-0000,trial-0001,...}."""

    def __init__(self, folder: Path) -> None:
        """Raises InvalidInput where the folder cannot be made, and ImportError without TensorBoard."""
        from torch.utils.tensorboard import SummaryWriter

        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"--tensorboard is {folder}: cannot be written ({error.strerror})") from None
        self._make: Callable[..., Any] = SummaryWriter
        self._folder = folder
        self._writers: dict[str, Any] = {}
        self._begun: set[str] = set()  # runs whose parameters are written

    @property
    def name(self) -> str:
        return f"TensorBoard in {self._folder}"

    @property
    def look(self) -> str:
        return f"look: tensorboard --logdir {self._folder}"

    def begin(self, about: About, store: StageStore) -> Known:
        self._about = about
        self._root = self._folder / f"{about.name}-{about.identity[:6]}"
        known = Known(standings=max(_Run(self._root / STUDY).steps("hypervolume"), default=0))
        for folder in sorted(self._root.glob("trial-*")):
            index, run = int(folder.name.removeprefix("trial-")), _Run(folder)
            known.iterations[index] = run.steps("accuracy")
            if run.begun:
                self._begun.add(folder.name)
            if run.failed is not None:
                known.failed[index] = run.failed
        return known

    def point(self, index: int, spec: TrialSpec, point: Point) -> None:
        writer = self._writer(index, spec)
        _write(writer, figures_of(point), point.iteration, seconds_of(point.created), key=point.key)
        writer.flush()

    def ended(self, ended: Ended) -> None:
        writer = self._writer(ended.index, ended.spec)
        writer.add_text("status", ended.status if ended.reason is None else f"{ended.status}: {ended.reason}")
        writer.file_writer.add_summary(_session_end(failed=ended.status == "failed"))
        self._writers.pop(_folder_of(ended.index)).close()

    def standing(self, standing: Standing) -> None:
        writer, moment = self._open(STUDY), seconds_of(standing.created)
        figures = study_figures(standing)
        by_cost = {f"{name}_{BY_COST}": figures[name] for name in ("hypervolume", "frontier_size")}
        _write(writer, by_cost, standing.train_flops // MILLION, moment)
        _write(writer, figures, standing.trials, moment)  # last: by these it is known what is there
        writer.flush()

    def close(self) -> None:
        while self._writers:
            self._writers.popitem()[1].close()

    def _writer(self, index: int, spec: TrialSpec) -> Any:
        from torch.utils.tensorboard.summary import hparams

        name = _folder_of(index)
        writer = self._open(name)
        if name not in self._begun:
            metrics = dict.fromkeys((*FIGURES, "train_flops"), 0.0)
            experiment, start, _ = hparams(dict(settings_of(spec, self._about)), metrics)
            writer.file_writer.add_summary(experiment)
            writer.file_writer.add_summary(start)
            self._begun.add(name)
        return writer

    def _open(self, name: str) -> Any:
        if name not in self._writers:
            self._writers[name] = self._make(str(self._root / name))
        return self._writers[name]


class _Run:
    """What the event files of a folder hold, read by TensorBoard."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams import metadata

        self._found = (
            EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}) if folder.is_dir() else None
        )
        if self._found is not None:
            self._found.Reload()
        self._tags = set(self._found.Tags()["scalars"] if self._found is not None else ())
        content = self._content(metadata.PLUGIN_NAME)
        self.begun = metadata.SESSION_START_INFO_TAG in content
        end = content.get(metadata.SESSION_END_INFO_TAG)
        self.failed = None if end is None else _has_failed(metadata.parse_session_end_info_plugin_data(end))

    def steps(self, tag: str) -> set[int]:
        """Those at which the tag has a value."""
        return {event.step for event in self._found.Scalars(tag)} if self._found and tag in self._tags else set()

    def _content(self, plugin: str) -> dict[str, bytes]:
        try:
            return dict(self._found.PluginTagToContent(plugin)) if self._found else {}
        except KeyError:  # no event of that plugin
            return {}


def _write(writer: Any, figures: Mapping[str, float], step: int, moment: float, **texts: str) -> None:
    """One event for all of them: whatever kills the writer, they are there or they are not."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard.summary import scalar, text

    event = Summary()
    for name, value in figures.items():
        event.MergeFrom(scalar(name, value))
    for name, words in texts.items():
        event.MergeFrom(text(name, words))
    writer.file_writer.add_summary(event, step, moment)


def _has_failed(info: Any) -> bool:
    from tensorboard.plugins.hparams import api_pb2

    return bool(info.status == api_pb2.Status.Value(FAILED_OR_NOT[True]))


def _session_end(*, failed: bool) -> Any:
    """What PyTorch's `hparams` makes, for a run that may have failed."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    info = plugin_data_pb2.SessionEndInfo(status=api_pb2.Status.Value(FAILED_OR_NOT[failed]))
    data = plugin_data_pb2.HParamsPluginData(session_end_info=info)
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=metadata.create_summary_metadata(data))
    return Summary(value=[value])


def _folder_of(index: int) -> str:
    return f"trial-{index:04}"
