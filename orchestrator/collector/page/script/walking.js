// How the chart of the frontier is hovered with a pointer and walked with the keyboard.

const REACH = 28; // pixels around a mark in which the pointer finds it

function hover(app, event) {
    point(app, nearest(app, event));
}

/** The point nearest to the pointer; those of the frontier are easier to hit. */
function nearest({ study, chart }, event) {
    const frame = chart.svg.getBoundingClientRect();
    const [px, py] = [
        ((event.clientX - frame.left) * chart.width) / frame.width,
        ((event.clientY - frame.top) * chart.height) / frame.height,
    ];
    let [best, least] = [null, REACH];
    for (const at of chart.drawnPoints) {
        const away = Math.hypot(chart.x[at] - px, chart.y[at] - py) * (shapeOf(study, at) === "other" ? 1.8 : 1);
        if (away < least) [best, least] = [at, away];
    }
    return best;
}

/** Puts the cursor and the tip at a point, or takes them away. */
function point({ study, chart }, at) {
    chart.at = at;
    chart.tip.hidden = at === null;
    chart.cursor.setAttribute("visibility", at === null ? "hidden" : "visible");
    if (at === null) return;
    chart.cursor.setAttribute("cx", chart.x[at]);
    chart.cursor.setAttribute("cy", chart.y[at]);
    chart.tip.replaceChildren(...tipOf(study, at));
    placeTip(chart, at);
}

function placeTip({ svg, tip, x, y, width, box }, at) {
    const unit = svg.clientWidth / width || 1;
    const room = box.right * unit - tip.offsetWidth;
    const left =
        x[at] * unit + 16 + tip.offsetWidth > svg.clientWidth ? x[at] * unit - tip.offsetWidth - 16 : x[at] * unit + 16;
    tip.style.left = `${Math.max(0, Math.min(left, Math.max(room, 0) + 16))}px`;
    const below = y[at] * unit + 14; // where a frontier leaves room
    const fits = below + tip.offsetHeight <= svg.clientHeight;
    tip.style.top = `${fits ? below : Math.max(0, y[at] * unit - tip.offsetHeight - 12)}px`;
}

function tipOf(study, at) {
    const { columns } = study;
    const latency = columns.latency_ms[at] === null ? null : millisecondsText(columns.latency_ms[at]);
    return [
        element("strong", {}, `accuracy ${shareText(columns.accuracy[at])}`),
        `${countText(columns.flops[at])} flops, ${percentText(columns.flops_kept[at])} of dense`,
        pairs("", [
            ["params", countText(columns.params[at])],
            ["latency", latency],
            ...(columns.kind[at] === "dense" ? [] : settingsOf(study, at)),
        ]),
    ];
}

function startWalk(app) {
    const { chart, opened } = app;
    if (!chart.svg.matches(":focus-visible") || chart.front.length === 0) return;
    const start = chart.front.includes(opened) ? opened : chart.front[0];
    tellWalk(app, start);
}

function walk(app, event) {
    const { chart } = app;
    const { front } = chart;
    if (front.length === 0) return;
    const nth = front.indexOf(chart.at ?? app.opened);
    const steps = {
        ArrowRight: nth + 1,
        ArrowUp: nth + 1,
        ArrowLeft: nth - 1,
        ArrowDown: nth - 1,
        Home: 0,
        End: front.length - 1,
    };
    if (event.key in steps) tellWalk(app, front[Math.max(0, Math.min(front.length - 1, steps[event.key]))]);
    else if ((event.key === "Enter" || event.key === " ") && chart.at !== null) app.open(chart.at);
    else if (event.key === "Escape") point(app, null);
    else return;
    event.preventDefault();
}

function tellWalk(app, at) {
    const { chart, study } = app;
    const { columns } = study;
    point(app, at);
    chart.svg.setAttribute("aria-valuenow", String(chart.front.indexOf(at) + 1));
    chart.svg.setAttribute(
        "aria-valuetext",
        `accuracy ${shareText(columns.accuracy[at])} at ${countText(columns.flops[at])} ` +
            `flops, ${chart.front.indexOf(at) + 1} of ${chart.front.length}`,
    );
}
