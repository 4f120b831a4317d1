// The chart of the frontier: accuracy over a cost, to be hovered, clicked and walked with the arrow keys.

const COSTS = { flops: "flops", params: "params", latency_ms: "latency" };
const COST_TITLES = {
    flops: "flops (multiply-accumulates, batch 1)",
    params: "params",
    latency_ms: "latency_ms of one batch",
};
const WIDE = 10; // from this ratio of costs on, dense to lowest, the axis begins as a logarithmic one
const BOX = { left: 58, right: 14, top: 30, bottom: 46 };

function showSwitches(app) {
    const { study, view } = app;
    const possible = (cost) => study.data.fronts[cost].length > 0;
    const redraw = (name) => (value) => {
        view[name] = value;
        showFrontier(app);
    };
    fill(
        "switches",
        choice(
            "cost",
            "Cost",
            Object.entries(COSTS).map(([cost, label]) => [cost, label, possible(cost)]),
            view.cost,
            redraw("cost"),
        ),
        choice(
            "log",
            "Scale of the cost",
            [
                ["log", "log"],
                ["linear", "linear"],
            ],
            view.log ? "log" : "linear",
            (value) => {
                view.log = value === "log";
                showFrontier(app);
            },
        ),
        choice(
            "ways",
            "Trajectories",
            [
                ["opened", "its path"],
                ["all", "all paths"],
                ["none", "no paths"],
            ],
            view.ways,
            redraw("ways"),
        ),
        element(
            "label",
            { class: "field" },
            element("input", {
                type: "checkbox",
                name: "whole",
                checked: view.whole,
                onchange: (event) => redraw("whole")(event.target.checked),
            }),
            "whole range",
        ),
    );
}

/** Whether a log axis shows more: the study reaches far below its dense model. */
function reachesFar({ data, columns }) {
    const costs = data.fronts.flops.map((point) => columns.flops[point]);
    return costs.length > 1 && Math.max(...ends(columns.flops)) >= WIDE * costs[0];
}

function showFrontier(app) {
    const chart = layout(app);
    app.chart = chart;
    const holder = byId("frontier-chart");
    const focused = holder.contains(document.activeElement);
    const tip = element("div", { class: "tip", hidden: true });
    chart.tip = tip;
    chart.cursor = drawn("circle", { class: "cursor", r: 9, visibility: "hidden" });
    const svg = drawn(
        "svg",
        {
            viewBox: `0 0 ${chart.width} ${chart.height}`,
            tabindex: "0",
            role: "slider",
            "aria-label": chartLabel(chart),
            "aria-valuemin": "1",
            "aria-valuemax": String(chart.front.length),
            "aria-valuenow": "1",
            "aria-orientation": "horizontal",
            onpointermove: (event) => hover(app, event),
            onpointerleave: () => point(app, null),
            onclick: (event) => {
                const found = nearest(app, event);
                if (found !== null) app.open(found);
            },
            onkeydown: (event) => walk(app, event),
            onfocus: () => startWalk(app),
            onblur: () => point(app, null),
        },
        chartAxes(chart),
        marks(app, chart),
        chart.cursor,
    );
    chart.svg = svg;
    holder.replaceChildren(svg, tip);
    if (focused) svg.focus({ preventScroll: true });
    showLegend(app, chart);
    showNotes(app, chart);
}

/** Sizes, scales and places of a chart. */
function layout({ study, view }) {
    const width = Math.max(280, byId("frontier-chart").clientWidth || 720);
    const height = Math.round(Math.min(470, Math.max(300, 0.6 * width)));
    const box = { left: BOX.left, right: width - BOX.right, top: BOX.top, bottom: height - BOX.bottom };
    const cost = study.columns[view.cost];
    const front = study.data.fronts[view.cost];
    const log = view.log && ends(cost)[0] > 0;
    const across = scale(acrossRange(cost, log), [box.left, box.right], log);
    const up = scale(upRange(study, front, view.whole), [box.bottom, box.top]);
    const x = cost.map((value) => (value === null ? NaN : across.place(value)));
    const y = study.columns.accuracy.map(up.place);
    const isDrawn = (at) => !Number.isNaN(x[at]) && study.columns.accuracy[at] >= up.low;
    const drawnPoints = x.map((_, at) => at).filter(isDrawn);
    return { width, height, box, across, up, x, y, front, isDrawn, drawnPoints, costName: view.cost };
}

/** Lowest and highest of the figures that are known. */
function ends(values) {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) {
        if (value === null) continue;
        low = Math.min(low, value);
        high = Math.max(high, value);
    }
    return [low, high];
}

function acrossRange(cost, log) {
    const [low, high] = ends(cost);
    if (log) return [low / 1.2, high * 1.2];
    return [0, high * 1.05 || 1];
}

/** The accuracies of the frontier with some room; what lies below is counted, not drawn, unless all is asked for. */
function upRange(study, front, whole) {
    const [lowest, highest] = ends(
        whole ? study.columns.accuracy : front.map((point) => study.columns.accuracy[point]),
    );
    const room = Math.max(0.01, 0.25 * (highest - lowest));
    return [
        Math.max(0, lowest - (whole ? 0.02 : room)),
        Math.min(1, highest + Math.max(0.004, 0.08 * (highest - lowest))),
    ];
}

function chartLabel({ front, costName }) {
    const what = `Frontier of accuracy over ${COSTS[costName]}: ${plural(front.length, "point")}`;
    return `${what}. Arrow keys go along it, Enter opens`;
}

function chartAxes({ box, across, up, costName }) {
    const digits = up.high - up.low < 0.05 ? 3 : 2;
    return axes(box, across, up, {
        acrossText: (value) => (costName === "latency_ms" ? numberText(value) : countText(value)),
        upText: (value) => value.toFixed(digits),
        acrossTitle: COST_TITLES[costName],
        upTitle: "accuracy on the validation split",
    });
}

function marks(app, chart) {
    const { study, view } = app;
    const { x, y, front } = chart;
    const special = new Set([...front, ...study.confirmed.keys(), ...(study.dense < 0 ? [] : [study.dense])]);
    const others = chart.drawnPoints.filter((at) => !special.has(at));
    const fits = (at) => app.matches(at);
    const shown = [...special].filter((at) => chart.isDrawn(at));
    return [
        cloud(
            chart,
            others.filter((at) => !fits(at)),
            "cloud faint",
        ),
        cloud(chart, others.filter(fits), "cloud"),
        view.ways === "all" ? drawn("path", { class: "ways", d: allWays(study, chart) }) : null,
        drawn("path", { class: "step", d: frontStep(chart) }),
        view.ways !== "none" && app.opened !== null ? way(study, chart, app.opened) : null,
        shown.map((at) => mark(study, at, x[at], y[at], fits(at))),
        app.arrived
            .filter((at) => chart.isDrawn(at))
            .map((at) => drawn("circle", { class: "arrived", cx: x[at], cy: y[at], r: 9 })),
        app.opened !== null && chart.isDrawn(app.opened)
            ? drawn("circle", { class: "opened", cx: x[app.opened], cy: y[app.opened], r: 10 })
            : null,
    ].flat();
}

/** Thousands of dots as one path: lines of no length with round ends. */
function cloud({ x, y }, points, name) {
    return drawn("path", { class: name, d: points.map((at) => `M${x[at].toFixed(1)} ${y[at].toFixed(1)}h0`).join("") });
}

function frontStep({ x, y, front, box }) {
    const path = stepPath(front.map((at) => [x[at], y[at]]));
    return path && `${path}H${box.right}`;
}

function allWays({ data }, { x, y, drawnPoints }) {
    return drawnPoints
        .filter((at) => data.points.previous[at] !== null && !Number.isNaN(x[data.points.previous[at]]))
        .map((at) => `M${x[data.points.previous[at]]} ${y[data.points.previous[at]]}L${x[at]} ${y[at]}`)
        .join("");
}

/** The trajectory of a point: dense, cut, cut, ... */
function way(study, { x, y }, opened) {
    const steps = wayTo(study, opened).filter((at) => !Number.isNaN(x[at]));
    return drawn(
        "g",
        { "aria-hidden": "true" },
        drawn("path", { class: "way", d: steps.map((at, nth) => `${nth ? "L" : "M"}${x[at]} ${y[at]}`).join("") }),
        steps.slice(0, -1).map((at) => drawn("circle", { class: "stop", cx: x[at], cy: y[at], r: 3.5 })),
    );
}

function mark(study, at, x, y, fits) {
    const shape = shapeOf(study, at);
    const name = `mark ${shape}${fits ? "" : " faint"}`;
    return drawn("path", { class: name, d: outline(shape, x, y), "data-key": study.columns.key[at] });
}

/** Shapes that differ without their colours: circle, diamond, star. */
function outline(shape, x, y) {
    if (shape === "dense") return `M${x} ${y - 7.5}l7.5 7.5l-7.5 7.5l-7.5 -7.5Z`;
    if (shape === "confirmed") return star(x, y, 9.5, 4.2);
    return `M${x - 5} ${y}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z`;
}

function star(x, y, outer, inner) {
    const corners = Array.from({ length: 10 }, (_, nth) => {
        const [radius, angle] = [nth % 2 ? inner : outer, (Math.PI * nth) / 5 - Math.PI / 2];
        return `${(x + radius * Math.cos(angle)).toFixed(2)} ${(y + radius * Math.sin(angle)).toFixed(2)}`;
    });
    return `M${corners.join("L")}Z`;
}

/** A small picture of a mark, for the legend and the tables. */
function symbol(shape, name = "symbol") {
    const picture =
        shape === "other"
            ? drawn("path", { class: "cloud", d: "M9 7h0" })
            : drawn("path", { class: `mark ${shape}`, d: outline(shape, 9, 7) });
    return drawn("svg", { class: name, viewBox: "0 -2 18 18", "aria-hidden": "true" }, picture);
}

function showLegend({ study, view, opened }, chart) {
    const there = (shape) => shape === "front" || chart.drawnPoints.some((at) => shapeOf(study, at) === shape);
    const entries = Object.entries(SHAPES)
        .filter(([shape]) => there(shape))
        .map(([shape, label]) => [symbol(shape), label]);
    if (chart.drawnPoints.length > chart.front.length) entries.push([symbol("other"), "other points"]);
    if (opened !== null) {
        entries.push([
            drawn("svg", { viewBox: "0 0 18 14" }, drawn("circle", { class: "opened", cx: 9, cy: 7, r: 6 })),
            "opened point",
        ]);
    }
    if (opened !== null && view.ways !== "none") {
        entries.push([
            drawn("svg", { viewBox: "0 0 18 14" }, drawn("path", { class: "way", d: "M0 7h18" })),
            "its path: dense, cut, cut, …",
        ]);
    }
    fill(
        "legend",
        entries.map(([picture, label]) => element("li", {}, picture, label)),
    );
}

function showNotes({ study, view }, chart) {
    const below = study.count - chart.drawnPoints.length;
    const left = study.data.points.left_out;
    const notes = [
        below && !view.whole ? `${plural(below, "point lies", "points lie")} below the picture.` : null,
        view.cost === "flops"
            ? null
            : `The frontier drawn here is over ${COSTS[view.cost]}; that of the study is over flops.`,
        left
            ? `${left.toLocaleString("en")} dominated points are left out, an even sample of them is in this page; ` +
              "the frontier is complete."
            : null,
    ].filter((note) => note !== null);
    fill("frontier-note", notes.join(" "));
    fill(
        "frontier-hint",
        plural(chart.front.length, "point"),
        " no other beats in both accuracy and ",
        COSTS[view.cost],
    );
}
