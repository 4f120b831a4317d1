// The page: what is shown, what was opened, and what has to be drawn again when either changes.

function start() {
    const live = document.body.dataset.page === "live";
    const app = {
        study: prepared(JSON.parse(byId("data").textContent)),
        live,
        opened: null,
        arrived: [],
        chart: null,
        view: {
            cost: "flops",
            log: false,
            ways: "opened",
            whole: false,
            which: "front",
            rows: PAGE,
            filter: { maxFlops: undefined, minAccuracy: undefined, settings: {} },
            sort: { by: "flops", down: false },
        },
        matches: (at) => passes(app.study, app.view.filter, at),
        open: (at) => open(app, at),
        renew: (data) => renew(app, data),
    };
    app.view.log = reachesFar(app.study);
    app.opened = firstOpened(app.study);
    showAll(app);
    followWindow(app);
    if (live) followStudy(app);
}

/** The point that the address names; else the smallest that is nearly as accurate as the dense model. */
function firstOpened({ columns, data, dense, count }) {
    const named = decodeURIComponent(location.hash.replace(/^#point=/, ""));
    const given = named === "" ? -1 : columns.key.findIndex((key) => key.startsWith(named));
    if (given >= 0) return given;
    const { flops: front } = data.fronts;
    const near = front.find((at) => dense >= 0 && columns.accuracy[at] >= columns.accuracy[dense] - WORTH_LOSING);
    return near ?? (count ? (front[0] ?? 0) : null);
}

function open(app, at) {
    app.opened = at;
    history.replaceState(null, "", `#point=${app.study.columns.key[at].slice(0, 16)}`);
    const focus = document.activeElement?.closest("#point") ? document.activeElement.getAttribute("aria-label") : null;
    showPoint(app);
    if (focus !== null) refocus(focus);
    showFrontier(app);
    showTable(app);
    announce(`Opened ${nameOf(app.study, at)}, accuracy ${shareText(app.study.columns.accuracy[at])}`);
}

/** Keeps the focus where it was in the panel of the point, which was drawn anew. */
function refocus(label) {
    const again =
        byId("point").querySelector(`[aria-label="${CSS.escape(label)}"]:not(:disabled)`) ??
        byId("point").querySelector("button");
    again?.focus({ preventScroll: true });
}

function showAll(app) {
    const { study } = app;
    const empty = study.count === 0;
    document.body.classList.toggle("nothing-yet", empty);
    for (const id of ["frontier", "point", "points", "importance"]) byId(id).hidden = empty;
    byId("nothing").hidden = !empty;
    showHead(study, app.live);
    showTroubles(study);
    showCounted(study);
    if (empty) {
        byId("course").hidden = true;
        showNothing(app);
        return;
    }
    showSwitches(app);
    showFilter(app);
    showPoint(app);
    showFrontier(app);
    showTable(app);
    showCourse(study);
    showImportance(study);
}

function showNothing({ study, live }) {
    const { failures } = study.data.state;
    fill(
        "nothing",
        element("h2", {}, "There is no point yet"),
        element(
            "p",
            {},
            "The first one is the dense model's, as soon as it is trained and measured." +
                (live ? " It will appear here by itself." : ""),
        ),
        failures ? element("p", {}, `${plural(failures, "trial")} failed: the reasons are below.`) : null,
    );
}

/** New data in a page that is open: the opened point, the filter and the focus stay. */
function renew(app, data) {
    const before = app.study;
    const key = app.opened === null ? null : before.columns.key[app.opened];
    const study = prepared(data);
    app.study = study;
    app.opened = study.place.get(key) ?? firstOpened(study);
    app.arrived = study.columns.key.map((_, at) => at).filter((at) => !before.place.has(study.columns.key[at]));
    if (before.count === 0 || study.count === 0) showAll(app);
    else showNews(app, key);
    if (app.arrived.length)
        announce(`${plural(app.arrived.length, "new point")}, hypervolume ${data.state.hypervolume.toFixed(4)}`);
}

function showNews(app, key) {
    const { study } = app;
    showHead(study, app.live);
    showFrontier(app);
    showTable(app);
    showCourse(study);
    showImportance(study);
    showTroubles(study);
    if (key !== study.columns.key[app.opened] || !byId("point").contains(document.activeElement)) showPoint(app);
}

/** Draws charts anew where their width has changed, and opens what is folded while the page is printed. */
function followWindow(app) {
    let width = byId("frontier-chart").clientWidth;
    new ResizeObserver(() => {
        const now = byId("frontier-chart").clientWidth;
        if (now === width || now === 0 || matchMedia("print").matches) return;
        width = now;
        showFrontier(app);
        showCourse(app.study);
    }).observe(byId("frontier-chart"));
    let folded = [];
    addEventListener("beforeprint", () => {
        folded = [...document.querySelectorAll("details:not([open])")];
        for (const one of folded) one.open = true;
    });
    addEventListener("afterprint", () => {
        for (const one of folded) one.open = false;
    });
}

start();
