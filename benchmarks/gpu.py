"""What one GPU makes of this project, in one command and under nine minutes.

    python benchmarks/gpu.py [--data-root data] [--model resnet20] [--minutes 9] [--parts precision steps ...]
    python benchmarks/gpu.py --device cpu --tiny        the same path in a minute, without a GPU

Where there is no GPU it runs the second, and says so: its figures mean nothing.

Parts, each with its own time, each going on if another fails (the exit code is then 1):

precision   an epoch of training in bfloat16 and channels_last, as training does it on a GPU, with each switched off
steps       a training step with the OICSR penalty beside a plain one
study       a study through Ray, four trials on the GPU by fractions
pruned      a point of that study against the dense model: pictures a second, deployed and in training
trials      trials an hour at 1, 2, 4 and 8 trials a GPU, each through Ray, and the device memory that a trial takes

It prints Markdown tables. CIFAR-10 is looked for in --data-root (cifar10, then cifar10_jpeg); where it is absent,
generated pictures of its shape stand in for it, and no accuracy is printed. Every time is read after the device has
finished, after a warm-up, as a median.

A machine without a package index: gather wheels where there is one, for the other machine's Python and platform
(`pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 -d wheels ray==...
optuna==... NAME==...`: ray, optuna and what they need beyond what is there), carry the folder over, and install there
by `pip install --no-index --find-links wheels ray optuna`; or, where no environment may be changed, by
`pip install --no-index --no-deps --target site wheels/*.whl` and PYTHONPATH=site:. from then on. The project itself
need not be installed: run it from its own folder.
"""

import argparse
import gc
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from unittest import mock

import torch
from torch import Generator, nn

import orchestrator
from orchestrator.collector import Study
from orchestrator.methods import METHODS, Subject
from orchestrator.network import couple
from orchestrator.network.architectures import build
from orchestrator.network.latency import side_by_side
from orchestrator.network.weights import save_weights
from orchestrator.record import InvalidInput, Schedule
from orchestrator.store import StageStore
from orchestrator.training import loop
from orchestrator.training.datasets import DataSet, Split, in_memory, load

ROOT = Path(__file__).resolve().parents[1]
STOPPING = 25  # seconds that an interrupted search may take to end
TOLERANCE = 0.01  # accuracy that the pruned model may lack


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How large everything is."""

    networks: tuple[str, ...]  # of `steps`
    batches: tuple[int, ...]
    steps: int
    rounds: int
    trials: int  # of the study
    together: int  # of its trials on the GPU
    at: tuple[int, ...]  # trials a GPU, one search each
    deployed: tuple[int, ...]  # batches


FULL = Setting(
    networks=("resnet20", "resnet56"),
    batches=(128, 512),
    steps=50,
    rounds=5,
    trials=8,
    together=4,
    at=(1, 2, 4, 8),
    deployed=(128, 512, 4096),
)
TINY = Setting(networks=("cifarnet",), batches=(16,), steps=2, rounds=1, trials=2, together=2, at=(2,), deployed=(8,))


@dataclass(kw_only=True)
class Check:
    """One run of this script: what it was told, and what a part found that a later one uses."""

    device: torch.device
    setting: Setting
    model: str
    dataset: str
    data_root: str
    data: DataSet
    work: Path
    deadline: float
    generated: bool
    tiny: bool
    epoch_seconds: float | None = None  # at the larger batch, as training does it
    study: Path | None = None
    until: float = field(default=math.inf)  # when the part under way has to end

    def left(self) -> float:
        """Seconds until the part under way has to end."""
        return min(self.until, self.deadline) - time.monotonic()

    def epochs(self, seconds: float, most: int) -> int:
        """As many epochs as take so long alone."""
        if self.tiny:
            return 1
        return max(1, min(most, round(seconds / (self.epoch_seconds or 2.0))))


# -- data: CIFAR-10, or pictures of its shape ------------------------------------------------------------------------


def generated() -> DataSet:
    """As many pictures as CIFAR-10 has, of noise. Good for times alone."""
    return _noise(45_000, 5_000)


def few_generated() -> DataSet:
    """A few pictures of noise."""
    return _noise(64, 32)


def _noise(train: int, others: int) -> DataSet:
    source = Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(256, (count, 3, 32, 32), generator=source, dtype=torch.uint8)
        return Split(images, torch.arange(count) % 10)

    return in_memory("noise", 10, train=split(train), validation=split(others), test=split(others))


def find_data(root: str, *, tiny: bool) -> tuple[str, DataSet, bool]:
    """The data set's name, the data, and whether they are generated."""
    if tiny:
        return "gpu:few_generated", load("gpu:few_generated"), True
    for name in ("cifar10", "cifar10_jpeg"):
        with suppress(InvalidInput):
            return name, load(name, root=root), False
    print(f"CIFAR-10 IS NOT IN {root}: GENERATED PICTURES, TIMES ALONE, NO ACCURACIES.\n")
    return "gpu:generated", load("gpu:generated"), True


# -- measuring -------------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clear(device: torch.device) -> None:
    """Give cached memory back, and count its peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_mb(device: torch.device) -> str:
    return f"{torch.cuda.max_memory_allocated(device) / 2**20:.0f}" if device.type == "cuda" else "-"


@contextmanager
def computing(*, bfloat16: bool = True, channels_last: bool = True, tf32: bool = True) -> Iterator[None]:
    """Training with what it does by itself on a GPU, or with some of it switched off."""
    lay_out = loop._lay_out_

    def contiguous(model: nn.Module, layout: torch.memory_format) -> None:
        lay_out(model, torch.contiguous_format)

    @contextmanager
    def exact_products() -> Iterator[None]:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False):
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    with ExitStack() as stack:
        if not bfloat16:
            stack.enter_context(mock.patch.object(loop, "precision", return_value=None))
        if not channels_last:
            stack.enter_context(mock.patch.object(loop, "_lay_out_", contiguous))
        if not tf32:
            stack.enter_context(mock.patch.object(loop, "_gpu_products", exact_products))
        yield


def step_ms(
    check: Check, model: nn.Module, batch: int, after_backward: Callable[[], None] | None = None
) -> tuple[float, int]:
    """Milliseconds of one training step, the mean over a short run, and the steps of an epoch."""
    pictures = check.data.train
    assert isinstance(pictures, Split)
    steps = min(check.setting.steps, max(1, len(pictures) // batch))
    part = replace(check.data, train=pictures.part(torch.arange(min(len(pictures), steps * batch))))
    schedule = Schedule(epochs=1, learning_rate=0.01, batch_size=batch, augmentation="crop_flip")
    synchronize(check.device)
    started = time.perf_counter()
    loop.fit(model, part, schedule, seed=0, device=check.device, after_backward=after_backward)
    synchronize(check.device)
    return 1e3 * (time.perf_counter() - started) / steps, max(1, len(pictures) // batch)


def new_model(check: Check, name: str) -> nn.Module:
    return build(name, classes=check.data.classes, input_shape=check.data.input_shape, seed=0)


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def header(*cells: str) -> None:
    row(*cells)
    row(*("---" for _ in cells))


def attempted(check: Check, names: Sequence[str], measure: Callable[[], Sequence[str]], columns: int) -> None:
    """A row of a table; of a configuration that does not fit the device, or the time, a row that says so."""
    if check.left() <= 0:
        cells: Sequence[str] = ["no time left"]
    else:
        try:
            cells = measure()
        except torch.OutOfMemoryError:
            cells = ["out of memory"]
    row(*names, *cells, *("-" for _ in range(columns - len(names) - len(cells))))
    clear(check.device)


# -- parts -----------------------------------------------------------------------------------------------------------


def precision(check: Check) -> None:
    """An epoch of training, as it is and with what makes it fast on a GPU switched off."""
    kinds: dict[str, dict[str, bool]] = {
        "bfloat16, channels_last": {},
        "bfloat16, contiguous": {"channels_last": False},
        "float32 (TF32 products), channels_last": {"bfloat16": False},
        "float32 (TF32 products), contiguous": {"bfloat16": False, "channels_last": False},
        "float32, contiguous": {"bfloat16": False, "channels_last": False, "tf32": False},
    }
    columns = ("network", "batch", "training in", "ms a step", "s an epoch", "against the first", "device memory, MB")
    header(*columns)
    first: dict[int, float] = {}  # by batch
    for batch in check.setting.batches:
        for name, switches in kinds.items():

            def measure(batch: int = batch, switches: dict[str, bool] = switches) -> Sequence[str]:
                model = new_model(check, check.model)
                with computing(**switches):
                    step_ms(check, model, batch)
                    found = [step_ms(check, model, batch) for _ in range(check.setting.rounds)]
                taken, steps = statistics.median(ms for ms, _ in found), found[0][1]
                if not switches:
                    check.epoch_seconds = taken * steps / 1e3
                first.setdefault(batch, taken)
                cells = f"{taken:.2f}", f"{taken * steps / 1e3:.2f}", f"{taken / first[batch]:.2f} x"
                return *cells, peak_mb(check.device)

            attempted(check, (check.model, f"{batch}", name), measure, len(columns))


def steps(check: Check) -> None:
    """What the OICSR penalty adds to a training step."""
    columns = ("network", "batch", "plain step, ms", "with OICSR, ms", "OICSR adds", "device memory, MB")
    header(*columns)
    for name in check.setting.networks:
        for batch in check.setting.batches:

            def measure(name: str = name, batch: int = batch) -> Sequence[str]:
                model, method = new_model(check, name), METHODS["oicsr"]
                coupling = couple(model, torch.randn(2, *check.data.input_shape))
                model = model.to(check.device)
                subject = Subject(
                    model=model, coupling=coupling, options=method.options(), calibration=lambda: (), seed=0
                )
                assert method.penalty is not None
                with method.penalty(subject, 1e-4) as penalty:
                    kinds = (None, penalty.after_backward)
                    for hook in kinds:
                        step_ms(check, model, batch, hook)
                    times = [
                        [step_ms(check, model, batch, hook)[0] for hook in kinds] for _ in range(check.setting.rounds)
                    ]
                plain, ours = (statistics.median(column) for column in zip(*times, strict=True))
                added = statistics.median(ours / plain - 1 for plain, ours in times)
                return f"{plain:.2f}", f"{ours:.2f}", f"{added:+.1%}", peak_mb(check.device)

            attempted(check, (name, f"{batch}"), measure, len(columns))


def study(check: Check) -> None:
    """A study through Ray with several trials on one GPU."""
    setting, batch = check.setting, check.setting.batches[-1]
    dense, short = check.epochs(20, 40), check.epochs(5, 10)
    text = f"""
[trial]
model = "{check.model}"
dataset = "{check.dataset}"
data_root = {json.dumps(str(Path(check.data_root).resolve()))}
{_schedules(batch, dense=dense, sparse=short, recovery=short)}
[search]
regularization_weight = {{ low = 1e-4, high = 1e-2, log = true, grid = 3 }}
pruning_ratio = {{ low = 0.2, high = 0.5 }}
iterations = {{ low = 1, high = {2 if check.tiny else 3} }}
[budget]
trials = {setting.trials}
[proposals]
parallel = {setting.together}
startup = {setting.together}
"""
    done = search(check, "study", text, setting.together)
    check.study = done.root
    found, front = Study(done.root), Study(done.root).front()
    status = found.status()
    print(
        f"{check.model} on {check.dataset}, batch {batch}, {dense} epochs dense, {short} + {short} an iteration: "
        f"{status.points} points of {setting.trials} trials, {setting.together} at once on one device, "
        f"{status.failures} failed, in {done.seconds:.0f} s{'' if done.finished else ' (stopped: time was up)'}; "
        f"device memory a trial {done.memory_mb(setting.together)} MB, GPU busy {done.busy}.\n"
    )
    header("flops_kept", "validation accuracy", "regularization_weight", "pruning_ratio", "iteration")
    for one in front.itertuples():
        accuracy = "-" if check.generated else f"{one.accuracy:.4f}"
        row(
            f"{one.flops_kept:.3f}",
            accuracy,
            f"{one.regularization_weight:g}",
            f"{one.pruning_ratio:.3g}",
            f"{one.iteration}",
        )


def pruned(check: Check) -> None:
    """A point of the study against its dense model."""
    if check.study is None:
        raise RuntimeError("there is no study to take a point from")
    found = Study(check.study)
    keys = chosen_points(found, generated=check.generated)
    columns = ("what", "batch", "dense, pictures/s", "pruned, pictures/s", "pruned / dense")
    header(*columns)

    def models(to: Callable[[nn.Module], nn.Module]) -> dict[str, nn.Module]:
        folders = {name: found.store.folder(key) for name, key in keys.items()}
        return {name: to(orchestrator.load(folder, device=check.device)) for name, folder in folders.items() if folder}

    def deployed(batch: int, to: Callable[[nn.Module], nn.Module]) -> Sequence[str]:
        timed = side_by_side(models(to), check.data.input_shape, batch=batch)
        return rates(timed["dense"].throughput, timed["pruned"].throughput)

    def trained(batch: int) -> Sequence[str]:
        both = models(lambda model: model)
        for model in both.values():
            step_ms(check, model, batch)
        times = [[step_ms(check, model, batch)[0] for model in both.values()] for _ in range(check.setting.rounds)]
        dense_ms, pruned_ms = (statistics.median(column) for column in zip(*times, strict=True))
        return rates(1e3 * batch / dense_ms, 1e3 * batch / pruned_ms)

    kinds: dict[str, Callable[[nn.Module], nn.Module]] = {
        "float32": lambda model: model,
        "bfloat16, channels_last": lambda model: model.to(torch.bfloat16).to(memory_format=torch.channels_last),
    }
    for name, to in kinds.items():
        for batch in check.setting.deployed:
            attempted(check, (f"deployed, {name}", f"{batch}"), lambda b=batch, t=to: deployed(b, t), len(columns))
    for batch in check.setting.batches:
        attempted(check, ("training", f"{batch}"), lambda b=batch: trained(b), len(columns))


def rates(dense: float, pruned: float) -> Sequence[str]:
    return f"{dense:,.0f}", f"{pruned:,.0f}", f"{pruned / dense:.2f}"


def chosen_points(found: Study, *, generated: bool) -> dict[str, str]:
    """The keys of the dense model and of the point that stands for the pruned ones, which is said."""
    points, front = found.points(), found.front()
    dense = points[points["kind"] == "dense"].iloc[0]
    smaller = front[front["flops"] < dense["flops"]]
    if smaller.empty:
        raise RuntimeError("the study was stopped before it had a pruned model on its frontier")
    good = smaller[smaller["accuracy"] >= dense["accuracy"] - TOLERANCE]
    chosen = good.iloc[0] if len(good) else smaller.iloc[-1]
    if generated:
        chosen = smaller.iloc[0]
        print(
            f"The smallest of the frontier, flops_kept {chosen['flops_kept']:.3f}; generated pictures: no accuracy.\n"
        )
    else:
        print(
            f"Dense: validation accuracy {dense['accuracy']:.4f}. Pruned: {chosen['accuracy']:.4f} at flops_kept "
            f"{chosen['flops_kept']:.3f}, {'the cheapest within a point' if len(good) else 'the most accurate'}.\n"
        )
    return {"dense": dense["key"], "pruned": chosen["key"]}


def trials(check: Check) -> None:
    """Trials an hour, with more and more of them on the GPU at once."""
    weights = check.work / "weights.safetensors"
    save_weights(new_model(check, check.model), weights)
    epochs, batch = check.epochs(4, 40), check.setting.batches[-1]
    print(
        f"A trial: weights given, {epochs} epochs sparse, cut to 0.7 of the flops, {epochs} epochs recovery, batch "
        f"{batch}; all distinct, twice as many as run at once. Timed from the first one's start to the last one's end; "
        "what Ray takes to start and to end is a column of its own.\n"
    )
    columns = (
        "trials a GPU",
        "trials done",
        "s a trial, median",
        "trials an hour",
        "against the first row",
        "device memory a trial, MB",
        "GPU busy",
        "start and end of the search, s",
    )
    header(*columns)
    first: list[float] = []
    for number, together in enumerate(check.setting.at):
        text = f"""
[trial]
model = "{check.model}"
dataset = "{check.dataset}"
data_root = {json.dumps(str(Path(check.data_root).resolve()))}
weights = {json.dumps(str(weights))}
pruning_ratio = 0.3
iterations = 1
{_schedules(batch, dense=1, sparse=epochs, recovery=epochs)}
[search]
regularization_weight = {{ low = 1e-4, high = 1e-3, log = true }}
[budget]
trials = {2 * together}
[proposals]
parallel = {2 * together}
startup = {2 * together}
"""

        def measure(text: str = text, together: int = together, number: int = number) -> Sequence[str]:
            share = check.left() / (len(check.setting.at) - number)
            done = search(check, f"at_{together}", text, together, seconds=max(1.6 * share, 30))
            spans = trial_spans(StageStore(done.root))
            if not spans:
                return ["none: no time left"]
            whole = max(end for _, end in spans) - min(start for start, _ in spans)
            rate = 3600 * len(spans) / whole
            first.append(rate)
            return (
                f"{len(spans)} of {2 * together}",
                f"{statistics.median(end - start for start, end in spans):.1f}",
                f"{rate:.0f}",
                f"{rate / first[0]:.2f} x",
                done.memory_mb(together),
                done.busy,
                f"{done.seconds - whole:.0f}",
            )

        attempted(check, (f"{together}",), measure, len(columns))


def _schedules(batch: int, **epochs: int) -> str:
    rates_of = {"dense": 0.1, "sparse": 0.05, "recovery": 0.02}
    return "\n".join(
        f"[trial.{name}]\nepochs = {count}\nlearning_rate = {rates_of[name]}\nbatch_size = {batch}\n"
        'augmentation = "crop_flip"'
        for name, count in epochs.items()
    )


def trial_spans(store: StageStore) -> list[tuple[float, float]]:
    """When each finished trial of one iteration began and ended, by the records of its stages."""
    stages = {stage.key: stage for stage in store.stages()}

    def end(key: str) -> float:
        return datetime.fromisoformat(stages[key].created).timestamp()

    cuts = [stage for stage in stages.values() if stage.kind == "cut" and stage.parent is not None]
    return [(end(cut.parent) - stages[cut.parent].cost.seconds, end(cut.key)) for cut in cuts if cut.parent]


# -- searches in a process of their own ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Searched:
    """How a search went: its folder, what it took, and whether it came to its end."""

    root: Path
    seconds: float
    finished: bool
    memory: int | None  # bytes of the device that were taken at most
    busy: str

    def memory_mb(self, together: int) -> str:
        return "-" if self.memory is None else f"{self.memory / together / 2**20:.0f}"


class Watch:
    """Looks at the device while others use it. Entered, a thread does so twice a second."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._over, self._busy = device, threading.Event(), list[int]()
        self._least = self._before = self._free()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def memory(self) -> int | None:
        return None if self._before is None or self._least is None else self._before - self._least

    @property
    def busy(self) -> str:
        working = [share for share in self._busy if share > 0]  # it stands still while Ray starts
        return f"{statistics.mean(working):.0f} %" if working else "-"

    def _free(self) -> int | None:
        return torch.cuda.mem_get_info(self._device)[0] if self._device.type == "cuda" else None

    def _look(self) -> None:
        while not self._over.wait(0.5):
            free = self._free()
            if free is not None and self._least is not None:
                self._least = min(self._least, free)
                with suppress(Exception):  # NVML's Python part may be missing, or the driver may not tell
                    self._busy.append(torch.cuda.utilization(self._device))


def search(check: Check, name: str, text: str, together: int, *, seconds: float = math.inf) -> Searched:
    """Run `orchestrator search` on a space with so many trials at once; interrupted when its time is up."""
    space = check.work / f"{name}.toml"
    space.write_text(text)
    share = (os.cpu_count() or 1) / together
    cpus = min(4, math.floor(share)) if share >= 1 else math.floor(100 * share) / 100
    gpus = 1 / together if check.device.type == "cuda" else 0
    command = [sys.executable, "-m", "orchestrator", "search", str(space), "--storage", str(check.work)]
    command += ["--cpus-per-trial", f"{cpus:g}", "--gpus-per-trial", f"{gpus:g}"]
    path = [str(ROOT), str(ROOT / "benchmarks"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    log = check.work / f"{name}.log"
    clear(check.device)
    started = time.monotonic()
    with log.open("w") as output, Watch(check.device) as watch:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            code = process.wait(max(1.0, min(seconds, check.left())))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            stop(process)
    if code not in (0, None):
        raise RuntimeError(f"the search ended with exit code {code}:\n" + "\n".join(log.read_text().splitlines()[-20:]))
    return Searched(
        root=check.work / name,
        seconds=time.monotonic() - started,
        finished=code == 0,
        memory=watch.memory,
        busy=watch.busy,
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a search that is still there: by SIGTERM, which leaves nothing behind, or by force."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


PARTS: dict[str, tuple[Callable[[Check], None], float]] = {  # with the seconds that each may take
    "precision": (precision, 75),
    "steps": (steps, 75),
    "study": (study, 150),
    "pruned": (pruned, 45),
    "trials": (trials, 210),
}


def check_all(check: Check, names: Sequence[str]) -> bool:
    """Run the parts; whether none failed."""
    failed = []
    for name in names:
        part, seconds = PARTS[name]
        check.until = time.monotonic() + seconds
        started = time.monotonic()
        print(f"\n### {name}\n\n{(part.__doc__ or '').strip()}\n", flush=True)
        try:
            part(check)
        except Exception:  # the next part goes on; the failure is printed, and in the exit code
            failed.append(name)
            print(f"\nFAILED:\n\n```\n{traceback.format_exc()}```")
        clear(check.device)
        print(f"\n{name}: {time.monotonic() - started:.0f} s", flush=True)
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return not failed


def machine(device: torch.device) -> str:
    python = f"Python {sys.version.split()[0]}, PyTorch {torch.__version__}, {os.cpu_count()} CPU cores"
    return f"{torch.cuda.get_device_name(device)}, {python}" if device.type == "cuda" else f"NO GPU, {python}"


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--model", help="resnet20 or resnet56 (default: resnet20)")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument(
        "--tiny", action="store_true", help="a few steps of a small network on a few generated pictures"
    )
    parser.add_argument("--minutes", type=float, default=8.5, help="when all has to be over")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("error: PyTorch finds no CUDA GPU here; --device cpu --tiny runs a small version", file=sys.stderr)
        return 2
    tiny = given.tiny or (given.device is None and not torch.cuda.is_available())
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    deadline = time.monotonic() + 60 * given.minutes
    print(f"## GPU\n\n{machine(device)}\n")
    if tiny:
        torch.set_num_threads(1)
        print("THE TINY VERSION: IT SHOWS THAT EVERYTHING RUNS; ITS FIGURES MEAN NOTHING.\n")
    dataset, data, is_generated = find_data(given.data_root, tiny=tiny)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        check = Check(
            device=device,
            setting=TINY if tiny else FULL,
            model=given.model or ("cifarnet" if tiny else "resnet20"),
            dataset=dataset,
            data_root=given.data_root,
            data=data,
            work=Path(work),
            deadline=deadline,
            generated=is_generated,
            tiny=tiny,
        )
        passed = check_all(check, given.parts)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
