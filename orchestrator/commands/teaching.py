"""`orchestrator teach`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from orchestrator.commands.arguments import RESULTS, Storage
from orchestrator.record import InvalidInput
from orchestrator.tables import FLOPS_MEANS, console, print_heading, print_table, share_text

if TYPE_CHECKING:
    from orchestrator.methods.agent_file import AgentCard
    from orchestrator.record import TrialSpec
    from orchestrator.search.space import SearchSpace
    from orchestrator.trial.teaching import Episode

LINE_EVERY = 10  # episodes, where there is no terminal
REWARD_MEANS = "reward: top-1 on train pictures that are kept back, right after the cut, nothing trained since"
# what makes the network that is taught on: fields of a space that must not vary
OF_THE_NETWORK = ("model", "dataset", "seed", "weights", "data_root", "latency_batch", "dense.")


def teach(
    space: Annotated[Path, typer.Argument(metavar="SPACE.toml", help="The search-space file that names the network.")],
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the agent goes: agent.safetensors.")],
    rates: Annotated[str, typer.Option(metavar="SHARES", help="The flops_kept it is taught for.")] = "0.3,0.5,0.7",
    episodes: Annotated[int, typer.Option(min=1, help="How many networks it prunes to learn from.")] = 300,
    group_cap: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Largest share of a group that may leave; else the space's.")
    ] = None,
    round_to: Annotated[
        int | None, typer.Option(min=1, help="Groups that lose channels keep a multiple of this; else the space's.")
    ] = None,
    reward: Annotated[
        Literal["accuracy", "beside_uniform"],
        typer.Option(help="Or accuracy divided by that of uniform widths at the rate, so that all rates weigh alike."),
    ] = "accuracy",
    algorithm: Annotated[Literal["td3", "ddpg"], typer.Option(help="ddpg is the published one.")] = "td3",
    any_network: Annotated[
        bool, typer.Option("--any-network", help="It may be asked about other networks than this.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the teaching; the network's is in the space.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    storage: Storage = RESULTS,
) -> None:
    """Teaches an agent to prune a network to several rates; trials then ask it: method "conditional_agent"."""
    from orchestrator.search.space import SearchSpace
    from orchestrator.trial.devices import check_device
    from orchestrator.trial.teaching import Lesson

    check_device(device)
    _check_group_cap(group_cap)
    if out.is_dir():
        raise InvalidInput(f"--out is {str(out)!r}, a folder; give a file in it, such as {out / 'agent.safetensors'}")
    found = SearchSpace.read(space)
    lesson = Lesson.model_validate(
        {
            "rates": _rates(rates),
            "episodes": episodes,
            "group_cap": max(spec.group_cap for spec in found.corners()) if group_cap is None else group_cap,
            "round_to": round_to or min(spec.round_to for spec in found.corners()),
            "reward": reward,
            "any_network": any_network,
            "seed": seed,
            "recipe": {"algorithm": algorithm},
        }
    )
    card = _taught(found, lesson, out, device=device, storage=storage)
    print_heading(f"{out}, taught on {card.taught['model']} and {card.taught['dataset']}", FLOPS_MEANS, REWARD_MEANS)
    print_answers(card)


def _taught(space: "SearchSpace", lesson: Any, out: Path, *, device: str, storage: str) -> "AgentCard":
    from orchestrator.files import located
    from orchestrator.methods import METHODS, options_of
    from orchestrator.methods.agent import NAME, AgentOptions
    from orchestrator.search.space import named_in
    from orchestrator.store import StageStore
    from orchestrator.trial.checking import check_dense
    from orchestrator.trial.teaching import teach as run

    screen, spec = console(), _network_of(space)
    with named_in(space.file):
        check_dense(spec)
    options = options_of(METHODS[NAME], spec.method_options if spec.method == NAME else {})
    assert isinstance(options, AgentOptions)
    store = StageStore(located(storage) / space.name)
    store.prepare()

    def tell(episode: "Episode") -> None:
        last = episode.number == lesson.episodes
        if screen.is_terminal or last or episode.number % LINE_EVERY == 0:
            screen.print(
                f"episode {episode.number} of {lesson.episodes}: asked for {episode.rate:g}, "
                f"flops_kept {episode.flops_kept:.4f}, reward {episode.reward:.4f}",
                end="\r" if screen.is_terminal and not last else "\n",
            )

    return run(spec, store, out, lesson, options, device=device, tell=tell, note=screen.print)


def print_answers(card: "AgentCard") -> None:
    """What an agent answers at each rate that it was taught for, beside uniform widths."""
    header = ["rate", "flops_kept", "reward", "uniform flops_kept", "uniform reward", "better by"]
    rows = [
        [
            f"{answer.rate:g}",
            share_text(answer.flops_kept),
            share_text(answer.reward),
            share_text(answer.uniform_flops_kept),
            share_text(answer.uniform_reward),
            f"{answer.reward - answer.uniform_reward:+.4f}",
        ]
        for answer in card.answers
    ]
    print_table(header, rows)


def _rates(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < rate < 1 for rate in found):
        raise InvalidInput(f"--rates is {text!r}; it must be shares between 0 and 1, such as 0.3,0.5,0.7")
    if len(set(found)) < len(found):
        raise InvalidInput(f"--rates is {text!r}; give each rate once")
    return found


def _check_group_cap(share: float | None) -> None:
    if share is not None and not 0 < share < 1:
        raise InvalidInput(f"--group-cap is {share:g}; it must be a share between 0 and 1, such as 0.8")


def _network_of(space: "SearchSpace") -> "TrialSpec":
    """A trial of the space, for its dense network. Raises InvalidInput where the space has several of them."""
    for name in space.dimensions:
        if any(name == field or (field.endswith(".") and name.startswith(field)) for field in OF_THE_NETWORK):
            raise InvalidInput(
                f"{space.file}: search.{name} varies; an agent is taught on one network: "
                "give it one value in [trial], in a space file of its own if need be"
            )
    return next(space.corners())
