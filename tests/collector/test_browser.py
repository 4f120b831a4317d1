"""The page in a real browser: opened, hovered, clicked, filtered, walked by keyboard, printed, and live.

Every test ends with: nothing was asked of anybody else, and the browser complained about nothing (see open_page).
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Study
from orchestrator.collector import report
from orchestrator.collector import serving as serving_module
from orchestrator.collector.report import page_data, write_report
from orchestrator.collector.serving import address_of, serving
from orchestrator.store import StageStore

OpenPage = Callable[..., Any]
AddTrial = Callable[..., None]
Measure = Callable[..., str]
ARMS = ("pruned\t", "dense\t", "scratch\t")
HOSTILE = "<img src=x onerror=alert(1)>"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 1}


def page_of(study: Study, folder: Path) -> str:
    """The address of a study's page in a file."""
    write_report(study, folder / "page.html")
    return (folder / "page.html").as_uri()


@pytest.fixture
def opened(full_study: Study, tmp_path: Path, open_page: OpenPage) -> Any:
    return open_page(page_of(full_study, tmp_path))


def front_mark(opened: Any, nth: int) -> Any:
    data = opened.data()
    key = data["points"]["columns"]["key"][data["fronts"]["flops"][nth]]
    return key, opened.page.locator(f'#frontier-chart [data-key="{key}"]')


def test_what_is_seen_at_first(opened: Any, full_study: Study) -> None:
    assert opened.text("h1") == "small"
    assert opened.page.title() == "small · frontier"
    assert "cifarnet on digits, pruned by oicsr" in opened.text("#subject")
    front = full_study.front()
    assert opened.page.locator("#frontier-chart .mark").count() == len(front)
    assert opened.page.locator("#points tbody tr").count() == len(front)
    assert "No smaller point is within 0.01 of that so far." in opened.text("#answer")
    assert "Search not running" in opened.text("#state")
    assert "the loss is NaN in epoch 3" in opened.text("#troubles")
    assert "what is left is dominated" in opened.text("#troubles")
    assert "multiply-accumulates" in opened.text("#counted")
    assert "validation split" in opened.text("#counted")
    assert "12 different pairs" in opened.text("#importance")
    assert len(opened.requests) == 1


def test_hover_shows_the_settings_and_a_click_opens_the_point(opened: Any) -> None:
    key, mark = front_mark(opened, 0)
    mark.hover()
    tip = opened.text(".tip")
    assert "accuracy 0." in tip
    assert "regularization_weight" in tip
    assert "0.45" in tip
    mark.click()
    assert opened.text("#point-title") == f"Point {key[:8]}"
    point = opened.text("#point")
    for shown in ("on the frontier", "not confirmed", "conv1", "/ 32", "cut 3", "dense", "orchestrator export"):
        assert shown in point
    flops = opened.data()["points"]["columns"]["flops"][opened.data()["fronts"]["flops"][0]]
    assert f"--max-flops {flops} --output my_model" in point
    assert f"orchestrator search point_{key[:8]}.toml --storage made_again" in point
    opened.page.locator("#point summary").click()
    assert "iterations = { low = 3, high = 4 }" in opened.text("#point details")
    assert "pruning_ratio = 0.45" in opened.text("#point details")
    assert opened.page.locator("#frontier-chart .way").count() == 1
    assert opened.page.url.endswith(f"#point={key[:16]}")
    opened.page.mouse.move(5, 5)
    assert not opened.page.locator(".tip").is_visible()


def test_the_opened_point_leads_on(opened: Any) -> None:
    front_mark(opened, 0)[1].click()
    first = opened.text("#point-title")
    opened.page.get_by_role("button", name="open the next larger point of the frontier").click()
    assert opened.text("#point-title") != first
    opened.page.get_by_role("button", name="open the next smaller point of the frontier").click()
    assert opened.text("#point-title") == first
    opened.page.locator("#point .path button").first.click()
    assert opened.text("#point-title") == "Dense model"
    assert "All groups are whole." in opened.text("#point")


def test_the_filter_narrows_the_table_and_the_chart(opened: Any, full_study: Study) -> None:
    opened.page.get_by_label("all points").check()
    rows = opened.page.locator("#points tbody tr")
    points = full_study.points()
    assert rows.count() == len(points) == 13
    opened.page.get_by_label("at most so many flops").fill("6M")
    cheap = points[points["flops"] <= 6_000_000]
    assert rows.count() == len(cheap)
    assert opened.page.locator("#frontier-chart .mark.faint").count() > 0
    opened.page.get_by_label("at least this accuracy").fill("0.88")
    assert rows.count() == (cheap["accuracy"] >= 0.88).sum()
    opened.page.get_by_label("at most so many flops").fill("six")
    assert opened.page.get_by_label("at most so many flops").get_attribute("aria-invalid") == "true"
    opened.page.get_by_label("at least this accuracy").fill("")
    opened.page.get_by_label("at most so many flops").fill("")
    opened.page.get_by_label("pruning_ratio").select_option(label="0.45")
    assert rows.count() == (points["pruning_ratio"] == 0.45).sum()
    opened.page.get_by_label("at most so many flops").fill("1")
    assert "No point" in opened.text("#points-count")


def test_the_table_sorts_and_opens(opened: Any) -> None:
    header = opened.page.locator("th[aria-sort]").filter(has_text="accuracy")
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    shown = opened.page.locator("#points tbody tr td:nth-child(4)").all_inner_texts()
    assert shown == sorted(shown, reverse=True)
    opened.page.locator("#points tbody tr").last.click()
    key = opened.page.locator("#points tbody tr").last.get_attribute("data-key")
    assert opened.text("#point-title") == f"Point {key[:8]}"
    assert opened.page.locator("#points tr[aria-current=true]").get_attribute("data-key") == key


def test_everything_is_reached_by_keyboard(opened: Any) -> None:
    chart = opened.page.locator("#frontier-chart svg")
    reached = set()
    for _ in range(60):
        opened.page.keyboard.press("Tab")
        reached.add(opened.page.evaluate("document.activeElement.closest('[id]')?.id ?? ''"))
        if chart.evaluate("svg => svg === document.activeElement"):
            break
    assert chart.evaluate("svg => svg.matches(':focus-visible') && getComputedStyle(svg).outlineStyle") == "solid"
    opened.page.keyboard.press("Home")
    assert "1 of" in chart.get_attribute("aria-valuetext")
    opened.page.keyboard.press("ArrowRight")
    assert "2 of" in chart.get_attribute("aria-valuetext")
    assert "regularization_weight" in opened.text(".tip")
    opened.page.keyboard.press("Enter")
    assert opened.text("#point-title") == f"Point {front_mark(opened, 1)[0][:8]}"
    assert opened.page.evaluate("document.activeElement.getAttribute('role')") == "slider"
    assert "Opened Point" in opened.page.locator("#announcements").text_content()
    opened.page.keyboard.press("End")
    opened.page.keyboard.press("Escape")
    assert not opened.page.locator(".tip").is_visible()
    assert "switches" in reached


def test_costs_scales_and_trajectories_are_switched(
    full_study: Study, add_trial: AddTrial, tmp_path: Path, open_page: OpenPage
) -> None:
    add_trial(full_study.store, 1e-3, 0.25, iterations=4, latency=True)
    opened = open_page(page_of(full_study, tmp_path))
    opened.page.get_by_label("params", exact=True).check()
    assert "that of the study is over flops" in opened.text("#frontier-note")
    opened.page.get_by_label("latency", exact=True).check()
    assert opened.page.locator("#frontier-chart .mark:not(.other)").count() == 4
    assert "latency_ms" in opened.text("#frontier-chart")
    opened.page.get_by_label("all paths").check()
    assert opened.page.locator("#frontier-chart .ways").get_attribute("d").count("M") == 3
    opened.page.get_by_label("whole range").check()
    for scale in ("log", "linear"):
        opened.page.get_by_label(scale, exact=True).check()
        assert opened.page.locator("#frontier-chart .grid").count() > 4


def test_a_hostile_name_shows_as_text(study: StageStore, open_page: OpenPage, tmp_path: Path) -> None:
    root = study.root.rename(study.root.with_name(HOSTILE))
    hostile = Study(root)
    data = page_data(hostile)
    data["study"]["models"] = ["</script><script>alert(2)</script>"]
    data["failures"] = [
        {"reason": "error", "message": HOSTILE, "regularization_weight": 1, "pruning_ratio": 1, "key": "k"}
    ]
    data["points"]["others"] = {HOSTILE: [HOSTILE] * data["points"]["total"]}
    data["widths"] = {"groups": [HOSTILE], "dense": [4], "left": {str(at): [2] for at in range(13)}}
    (tmp_path / "page.html").write_text(report.html_of(data))
    opened = open_page((tmp_path / "page.html").as_uri())
    assert opened.text("h1") == HOSTILE
    assert opened.page.title() == f"{HOSTILE} · frontier"
    assert "</script><script>alert(2)</script> on digits" in opened.text("#subject")
    assert HOSTILE in opened.text("#troubles")
    front_mark(opened, 0)[1].click()
    assert opened.text("#point").count(HOSTILE) >= 2
    assert opened.page.locator("img").count() == 0


def test_confirmed_points_are_marked(full_study: Study, measure: Measure, open_page: OpenPage, tmp_path: Path) -> None:
    front = full_study.front()
    key = front["key"].iloc[0]
    for seed, accuracy in enumerate((0.9, 0.905)):
        measure(key, "pruned", seed, accuracy, with_validation=True)
        measure(key, "scratch", seed, accuracy - 0.1, with_validation=True)
    measure(key, "dense", 0, 0.95, with_validation=True)
    opened = open_page(page_of(full_study, tmp_path))
    assert opened.page.locator("#frontier-chart .mark.confirmed").count() == 1
    front_mark(opened, 0)[1].click()
    point = opened.text("#point")
    pruned, dense, scratch = [line.split() for line in point.splitlines() if line.startswith(ARMS)][:3]
    assert pruned[:5] == ["pruned", "2", "0.9025", "±", "0.0035"]
    assert dense[:3] == ["dense", "1", "0.9500"]
    assert scratch[:5] == ["scratch", "2", "0.8025", "±", "0.0035"]
    assert pruned[-1] == f"{front['accuracy'].iloc[0] - 0.9025:.4f}"
    assert "Trained on train and validation." in point
    assert "not confirmed" not in point
    assert "confirmed on the test split" in opened.text("#legend")


@pytest.mark.parametrize("iterations", [None, 0])
def test_a_study_of_no_point_and_of_one(
    iterations: int | None, add_trial: AddTrial, open_page: OpenPage, tmp_path: Path
) -> None:
    store = StageStore(tmp_path / "young")
    store.prepare()
    if iterations is not None:
        add_trial(store, 1e-3, 0.3, iterations=iterations)
    opened = open_page(page_of(Study(store.root), tmp_path))
    if iterations is None:
        assert "There is no point yet" in opened.text("#nothing")
        assert not opened.page.locator("#frontier").is_visible()
    else:
        assert opened.text("#point-title") == "Dense model"
        assert opened.page.locator("#frontier-chart .mark").count() == 1
    assert opened.page.locator("#counted").is_visible()


@pytest.mark.parametrize("settings", [{}, PHONE, {"color_scheme": "dark"}], ids=["desktop", "phone", "dark"])
def test_nothing_is_wider_than_the_screen(
    full_study: Study, open_page: OpenPage, tmp_path: Path, settings: dict[str, Any]
) -> None:
    opened = open_page(page_of(full_study, tmp_path), **settings)
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    opened.page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_print_has_everything_and_no_switches(opened: Any, tmp_path: Path) -> None:
    opened.page.emulate_media(media="print")
    assert not opened.page.locator("#switches").is_visible()
    assert not opened.page.locator("#filter").is_visible()
    assert opened.page.locator("#frontier-chart svg").is_visible()
    assert opened.page.locator("#points tbody tr").first.is_visible()
    opened.page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_very_many_points_stay_quick(many_points: Study, open_page: OpenPage, tmp_path: Path) -> None:
    size = write_report(many_points, tmp_path / "page.html")
    assert size < 10_000_000
    opened = open_page((tmp_path / "page.html").as_uri())
    data = opened.data()
    assert data["points"]["left_out"] > 80_000
    assert len(data["fronts"]["flops"]) > 10
    assert "dominated points are left out" in opened.text("#frontier-note")
    opened.page.get_by_label("all points").check()
    assert opened.page.locator("#points tbody tr").count() == 50
    opened.page.get_by_role("button", name="Show more").click()
    assert opened.page.locator("#points tbody tr").count() > 50
    spent = opened.page.evaluate(
        """() => {
            const chart = document.querySelector("#frontier-chart svg");
            const box = chart.getBoundingClientRect();
            const start = performance.now();
            for (let step = 0; step < 50; step += 1) {
                const clientX = box.left + 80 + step * 8;
                chart.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY: box.top + 150 }));
            }
            return (performance.now() - start) / 50;
        }"""
    )
    assert spent < 200  # milliseconds for one movement of the pointer, on a machine that has other things to do


# --- live ---


@pytest.fixture
def live(full_study: Study, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of the study."""
    monkeypatch.setattr(serving_module, "FRESH_SECONDS", 0.0)
    with serving(full_study) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield address_of(server)
        server.shutdown()
        thread.join()


def test_a_new_point_appears_without_reloading(
    live: str, full_study: Study, add_trial: AddTrial, open_page: OpenPage
) -> None:
    opened = open_page(live)
    opened.page.get_by_label("all points").check()
    opened.page.get_by_label("at least this accuracy").fill("0.5")
    front_mark(opened, 0)[1].click()
    title = opened.text("#point-title")
    opened.page.evaluate("window.sameDocument = true")
    assert opened.page.locator("#points tbody tr").count() == 13
    add_trial(full_study.store, 1e-3, 0.6, iterations=1)
    opened.page.locator("#points tbody tr").nth(13).wait_for(timeout=60_000)
    assert opened.page.evaluate("window.sameDocument") is True
    assert opened.text("#point-title") == title
    assert opened.page.get_by_label("at least this accuracy").input_value() == "0.5"
    assert "1 new point" in opened.page.locator("#announcements").text_content()
    key = full_study.points()["key"].iloc[-1]
    assert opened.page.locator(f'#points [data-key="{key}"]').count() == 1
    assert {url.removeprefix(live).partition("#")[0] for url in opened.requests} == {"", "data.json"}


def test_the_first_point_of_a_study_appears_too(
    tmp_path: Path, add_trial: AddTrial, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "FRESH_SECONDS", 0.0)
    store = StageStore(tmp_path / "young")
    store.prepare()
    with serving(Study(store.root)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        opened = open_page(address_of(server))
        assert "It will appear here by itself" in opened.text("#nothing")
        add_trial(store, 1e-3, 0.3, iterations=1)
        opened.page.wait_for_selector("#frontier-chart .mark", timeout=60_000)
        assert not opened.page.locator("#nothing").is_visible()
        server.shutdown()
        thread.join()
