"""figures.json: what an exported model is, how well it does and where it comes from, for programs."""

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from orchestrator.network.latency import Latency
from orchestrator.network.model_card import Preprocessing
from orchestrator.network.zoo import InputShape
from orchestrator.record import Record, Share, StageKind

FIGURES_FILE = "figures.json"
Count = Annotated[int, Field(ge=0)]


class Data(Record):
    """The data set, and how many pictures its splits have."""

    name: str
    fingerprint: str  # of all pictures, labels and splits; of picture files, their names and sizes
    classes: Count
    train: Count
    validation: Count
    test: Count


class Code(Record):
    """Code of the user's that builds the network or loads the data. It is not in the folder."""

    reference: str  # package.module:function
    sha256: str | None  # of the file that the module came from; None if it came from none


class Latencies(Record):
    """The pruned network beside the dense one, a batch of each in turn, under PyTorch."""

    machine: str
    pruned: Latency
    dense: Latency


class SearchLatency(Record):
    """What the search has measured, where the trial ran, beside whatever else ran there."""

    latency_ms: FiniteFloat
    batch: Count


class Confirmation(Record):
    """What training the point anew, from fresh seeds, has shown. Test figures, over the seeds."""

    point: str  # the key of the point of the search that was confirmed
    seeds: Count
    test_accuracy_mean: Share
    test_accuracy_deviation: FiniteFloat | None  # of the sample; None for one seed
    optimism: FiniteFloat  # accuracy of the point in the search, minus test_accuracy_mean
    with_validation: bool  # the validation split was trained on, too


class Layer(Record):
    """A convolution or linear layer: the channels that it makes, and its flops over all its calls."""

    name: str
    channels: Count | None  # None where a module's own code calls the operator
    dense_channels: Count | None
    flops: Count
    dense_flops: Count


class StageFacts(Record):
    """One stage of the path from nothing to this model; `parameters` is all that its key was made from."""

    kind: StageKind
    key: str
    parameters: dict[str, Any]


class Origin(Record):
    """Which study the model comes from, and how it came about there."""

    study: str
    points: Count  # of the study when this one was chosen
    key: str
    seed: Count
    stages: tuple[StageFacts, ...]  # the first first
    train_flops: Count  # forward flops x samples x 3, of all stages
    commit: str | None  # of the code that trained it
    trained: str | None  # when
    trained_with: dict[str, str]  # versions
    exported: str
    exported_with: dict[str, str]


class ExportedFile(Record):
    """A file of the folder that holds the network."""

    format: str
    file: str
    bytes: Count  # with what lies in a second file beside it
    sha256: str
    difference: FiniteFloat  # from the network, of the worst output, relative to the largest
    test_accuracy: Share  # of this very file, by its own runtime


class Figures(Record):
    """All that the card of an exported model says. flops are multiply-accumulates at batch 1.

    accuracy is top-1 on the validation split, which the search chose by; test_accuracy on the test split, which it
    never saw.
    """

    format: Literal["pruning-orchestrator figures"] = "pruning-orchestrator figures"
    version: Literal[1] = 1
    model: str
    code: tuple[Code, ...]
    data: Data
    input_shape: InputShape
    preprocessing: Preprocessing
    accuracy: Share | None  # None if it was trained on the validation split, too
    accuracy_after_cut: Share | None
    dense_accuracy: Share | None  # on the validation split, of the dense model that this one was cut from
    test_accuracy: Share
    test_accuracy_by: Literal["export", "confirm"]  # which of them has measured it
    confirmation: Confirmation | None
    flops: Count
    dense_flops: Count
    flops_kept: Share
    params: Count
    dense_params: Count
    latency: Latencies | None
    search_latency: SearchLatency | None
    method: str | None  # None for the dense model, as are the two settings
    regularization_weight: FiniteFloat | None
    pruning_ratio: FiniteFloat | None
    iterations: Count  # 0 for the dense model
    layers: tuple[Layer, ...]
    origin: Origin
    files: tuple[ExportedFile, ...]
    limits: tuple[str, ...]
