// The charts of a comparison: lines over one another, told apart by tone, by the shape of their marks and by dashes.

const TONES = 8;
const DASHES = [null, "7 3", "2 3", "9 3 2 3"];
const OVERLAY_BOX = { left: 58, right: 16, top: 30, bottom: 46 };
const REACH = 28; // pixels around a mark in which the pointer finds it
const ARM_SHAPES = { pruned: 6, dense: 1, scratch: 4 };

/** A mark of one of eight shapes, around a place. */
function spot(shape, x, y, name = "spot") {
    const outlines = [
        `M${x - 4.5} ${y}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z`,
        `M${x} ${y - 6}l6 6l-6 6l-6 -6Z`,
        `M${x} ${y - 5.5}l5.5 9.5h-11Z`,
        `M${x - 4.2} ${y - 4.2}h8.4v8.4h-8.4Z`,
        `M${x - 1.8} ${y - 5.5}h3.6v3.7h3.7v3.6h-3.7v3.7h-3.6v-3.7h-3.7v-3.6h3.7Z`,
        `M${x} ${y + 5.5}l5.5 -9.5h-11Z`,
        `M${x} ${y - 7}l2 5h5l-4 3.2l1.6 5l-4.6 -3l-4.6 3l1.6 -5l-4 -3.2h5Z`,
        `M${x - 5.5} ${y - 2.6}h11v5.2h-11Z`,
    ];
    return drawn("path", { class: name, d: outlines[shape % outlines.length] });
}

/** How the nth line is drawn: with more than eight, shapes and dashes change where tones repeat. */
function styleOf(nth) {
    const round = Math.floor(nth / TONES);
    return { tone: `tone-${nth % TONES}`, shape: nth + 3 * round, dash: DASHES[(nth + round) % DASHES.length] };
}

/** A small picture of a line for legends and tables. */
function sample(nth) {
    const { tone, shape, dash } = styleOf(nth);
    return drawn(
        "svg",
        { class: `symbol ${tone}`, viewBox: "0 0 30 14", "aria-hidden": "true" },
        drawn("path", { d: "M0 7h30", stroke: "currentColor", "stroke-width": 1.9, "stroke-dasharray": dash }),
        spot(shape, 15, 7),
    );
}

function lowHigh(values) {
    return values.reduce(
        ([low, high], value) => [Math.min(low, value), Math.max(high, value)],
        [Infinity, -Infinity],
    );
}

/** A frame with axes. places: [flops, figure] of all that must be seen. */
function frameOf(holder, places, { log, upTitle }) {
    const width = Math.max(280, holder.clientWidth || 720);
    const height = Math.round(Math.min(480, Math.max(300, 0.5 * width)));
    const box = {
        left: OVERLAY_BOX.left,
        right: width - OVERLAY_BOX.right,
        top: OVERLAY_BOX.top,
        bottom: height - OVERLAY_BOX.bottom,
    };
    const [least, most] = lowHigh(places.map(([flops]) => flops));
    const [lowest, highest] = lowHigh(places.map(([, figure]) => figure));
    const room = Math.max(0.005, 0.08 * (highest - lowest));
    const across = scale(log ? [least / 1.2, most * 1.2] : [0, most * 1.05 || 1], [box.left, box.right], log);
    const up = scale([Math.max(0, lowest - room), Math.min(1, highest + room)], [box.bottom, box.top]);
    const digits = up.high - up.low < 0.05 ? 3 : 2;
    const grid = axes(box, across, up, {
        acrossText: countText,
        upText: (value) => value.toFixed(digits),
        acrossTitle: "flops (multiply-accumulates, batch 1)",
        upTitle,
    });
    return { width, height, box, across, up, grid };
}

/** The overlay: for each shown line its step line, the band of its deviation, and the points of its frontiers. */
function showOverlay(app) {
    const holder = byId("overlay-chart");
    const shown = app.data.lines.map((_, nth) => nth).filter((nth) => !app.hidden.has(nth));
    if (shown.length === 0) {
        holder.replaceChildren(element("p", { class: "means" }, "No line is chosen."));
        return;
    }
    const marks = shown.flatMap((nth) => marksOf(app.data.lines[nth], nth));
    const places = marks.map(({ flops, accuracy }) => [flops, accuracy]);
    const frame = frameOf(holder, places, { log: app.log, upTitle: "accuracy on the validation split" });
    const tip = element("div", { class: "tip", hidden: true });
    const cursor = drawn("circle", { class: "cursor", r: 9, visibility: "hidden" });
    for (const mark of marks) {
        mark.x = frame.across.place(mark.flops);
        mark.y = frame.up.place(mark.accuracy);
    }
    app.chart = { ...frame, marks, tip, cursor, at: null, shown };
    const svg = drawn(
        "svg",
        {
            viewBox: `0 0 ${frame.width} ${frame.height}`,
            tabindex: "0",
            role: "slider",
            "aria-label":
                `Frontiers of ${plural(shown.length, "line")}. ` +
                "Left and right go along a line, up and down change it",
            "aria-valuemin": "1",
            "aria-valuemax": String(marks.length),
            "aria-valuenow": "1",
            onpointermove: (event) => pointAt(app, nearestMark(app.chart, event)),
            onpointerleave: () => pointAt(app, null),
            onkeydown: (event) => walkMarks(app, event),
            onblur: () => pointAt(app, null),
        },
        frame.grid,
        shown.map((nth) => lineOf(app.data.lines[nth], nth, frame)),
        marks.map(({ nth, x, y, key }) => withKey(spot(styleOf(nth).shape, x, y, `spot ${styleOf(nth).tone}`), key)),
        cursor,
    );
    app.chart.svg = svg;
    holder.replaceChildren(svg, tip);
}

function withKey(mark, key) {
    mark.setAttribute("data-key", key);
    return mark;
}

function marksOf({ marks }, nth) {
    return marks.key.map((key, at) => ({ nth, at, key, flops: marks.flops[at], accuracy: marks.accuracy[at] }));
}

function lineOf({ steps }, nth, { across, up, box }) {
    const { tone, dash } = styleOf(nth);
    const inside = (value) => up.place(Math.min(up.high, Math.max(up.low, value)));
    const path = stepPath(steps.map(([flops, mean]) => [across.place(flops), inside(mean)]));
    const spread = steps.filter(([, , deviation]) => deviation !== null);
    const edge = (sign) =>
        spread.map(([flops, mean, deviation]) => [across.place(flops), inside(mean + sign * deviation)]);
    return drawn(
        "g",
        { class: tone, "aria-hidden": "true" },
        spread.length ? drawn("path", { class: "band", d: bandPath(edge(1), edge(-1), box.right) }) : null,
        path && drawn("path", { class: "course-line", d: `${path}H${box.right}`, "stroke-dasharray": dash }),
    );
}

/** The area between two step lines that go on to the right edge. */
function bandPath(upper, lower, right) {
    const back = lower
        .map(([x, y], at) => `V${y}H${x}`)
        .reverse()
        .join("");
    return `${stepPath(upper)}H${right}${back}Z`;
}

function nearestMark({ svg, marks, width }, event) {
    const frame = svg.getBoundingClientRect();
    const unit = width / frame.width;
    const [px, py] = [(event.clientX - frame.left) * unit, (event.clientY - frame.top) * unit];
    const away = ({ x, y }) => Math.hypot(x - px, y - py);
    const best = marks.reduce((least, mark) => (least === null || away(mark) < away(least) ? mark : least), null);
    return best !== null && away(best) <= REACH ? best : null;
}

function pointAt(app, mark) {
    const { tip, cursor, svg, width } = app.chart;
    app.chart.at = mark;
    tip.hidden = mark === null;
    cursor.setAttribute("visibility", mark === null ? "hidden" : "visible");
    if (mark === null) return;
    cursor.setAttribute("cx", mark.x);
    cursor.setAttribute("cy", mark.y);
    tip.replaceChildren(...markTip(app.data.lines[mark.nth], mark));
    const unit = svg.clientWidth / width || 1;
    const right = mark.x * unit + 16;
    const fits = right + tip.offsetWidth <= svg.clientWidth;
    tip.style.left = `${Math.max(0, fits ? right : mark.x * unit - tip.offsetWidth - 16)}px`;
    tip.style.top = `${Math.max(0, Math.min(mark.y * unit + 14, svg.clientHeight - tip.offsetHeight))}px`;
}

function markTip(line, { at }) {
    const { marks } = line;
    return [
        element("strong", {}, line.name),
        `accuracy ${shareText(marks.accuracy[at])} at ${countText(marks.flops[at])} flops`,
        pairs("", [
            ["method", marks.method[at] ?? "dense model"],
            ["study", line.studies.length > 1 || line.studies[0] !== line.name ? marks.study[at] : null],
            ["flops_kept", percentText(marks.flops_kept[at])],
            ["params", countText(marks.params[at])],
            ...["regularization_weight", "pruning_ratio", "iteration"].map((name) => [
                name,
                marks.method[at] === null ? null : numberText(marks[name][at]),
            ]),
            ["seed", numberText(marks.seed[at])],
            ["key", marks.key[at].slice(0, 12)],
        ]),
    ];
}

function walkMarks(app, event) {
    const { marks, at, shown } = app.chart;
    const nth = marks.indexOf(at);
    const turn = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const steps = { ArrowRight: nth + 1, ArrowLeft: nth - 1, Home: 0, End: marks.length - 1 };
    if (event.key === "Escape") pointAt(app, null);
    else if (turn !== undefined) tellMark(app, marks.find((mark) => mark.nth === neighbour(shown, at, turn)));
    else if (event.key in steps) tellMark(app, marks[Math.max(0, Math.min(marks.length - 1, steps[event.key]))]);
    else return;
    event.preventDefault();
}

function neighbour(shown, at, turn) {
    const place = at === null ? 0 : shown.indexOf(at.nth) + turn;
    return shown[Math.max(0, Math.min(shown.length - 1, place))];
}

function tellMark(app, mark) {
    if (mark === undefined) return;
    pointAt(app, mark);
    const { name } = app.data.lines[mark.nth];
    app.chart.svg.setAttribute("aria-valuenow", String(app.chart.marks.indexOf(mark) + 1));
    app.chart.svg.setAttribute(
        "aria-valuetext",
        `${name}: accuracy ${shareText(mark.accuracy)} at ${countText(mark.flops)} flops`,
    );
}

/** Test figures of fresh seeds over flops: stars, and the controls of the same train_flops beside them. */
function testedChart(app, holder) {
    const rows = app.data.confirmed;
    const whiskers = ({ test_accuracy_mean: mean, test_accuracy_deviation: deviation }) => [
        mean - (deviation ?? 0),
        mean + (deviation ?? 0),
    ];
    const places = rows.flatMap((row) => whiskers(row).map((figure) => [row.flops, figure]));
    const upTitle = "test_accuracy, mean and deviation over fresh seeds";
    const frame = frameOf(holder, places, { log: app.log, upTitle });
    const marks = rows.map((row) => {
        const told = meanText(row.test_accuracy_mean, row.test_accuracy_deviation);
        const [x, y] = [frame.across.place(row.flops), frame.up.place(row.test_accuracy_mean)];
        const [low, high] = whiskers(row).map(frame.up.place);
        const name = `spot${row.arm === "pruned" ? "" : " open"}`;
        return drawn(
            "g",
            { class: styleOf(lineAt(app.data.lines, row)).tone, "data-arm": row.arm },
            drawn("line", { class: "whisker", x1: x, x2: x, y1: low, y2: high }),
            spot(ARM_SHAPES[row.arm], x, y, name),
            drawn("title", {}, `${row.line}, ${row.arm}: ${told}`),
        );
    });
    const label = `Test accuracy over flops of ${plural(rows.length, "confirmed model")}`;
    return drawn(
        "svg",
        { viewBox: `0 0 ${frame.width} ${frame.height}`, role: "img", "aria-label": label },
        frame.grid,
        marks,
    );
}

function meanText(mean, deviation) {
    return deviation === null || deviation === undefined
        ? shareText(mean)
        : `${shareText(mean)} ± ${deviation.toFixed(4)}`;
}
