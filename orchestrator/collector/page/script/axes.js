// Scales and axes of the charts.

/** A scale from figures to pixels; `log` needs figures above 0. */
function scale([low, high], [from, to], log = false) {
    const bend = log ? Math.log : (value) => value;
    const start = bend(low);
    const span = bend(high) - start || 1;
    const place = (value) => from + ((bend(value) - start) / span) * (to - from);
    return { low, high, log, place };
}

/** Round figures within a scale, about as many as asked for. */
function ticks({ low, high, log }, count) {
    return log ? logTicks(low, high, count) : linearTicks(low, high, count);
}

function linearTicks(low, high, count) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) ?? 10);
    const first = Math.ceil(low / step - 1e-9);
    const last = Math.floor(high / step + 1e-9);
    return Array.from({ length: Math.max(0, last - first + 1) }, (_, at) =>
        Number(((first + at) * step).toPrecision(12)),
    );
}

function logTicks(low, high, count) {
    const choices = [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7]];
    const found = choices.map((factors) =>
        powers(low, high)
            .flatMap((power) => factors.map((factor) => factor * power))
            .filter((value) => value >= low * 0.999 && value <= high * 1.001),
    );
    const fitting = found.filter((values) => values.length <= count + 1);
    const best = fitting.at(-1) ?? found[0];
    return best.length >= 2 ? best.map((value) => Number(value.toPrecision(12))) : linearTicks(low, high, count);
}

function powers(low, high) {
    const first = Math.floor(Math.log10(low));
    const last = Math.ceil(Math.log10(high));
    return Array.from({ length: last - first + 1 }, (_, at) => 10 ** (first + at));
}

/** Grid lines and labels of both axes. `box` holds left, right, top and bottom in pixels. */
function axes(box, across, up, { acrossText, upText, acrossTitle, upTitle }) {
    const width = box.right - box.left;
    const parts = ticks(up, Math.max(3, Math.round((box.bottom - box.top) / 60))).map((value) => [
        drawn("line", { class: "grid", x1: box.left, x2: box.right, y1: up.place(value), y2: up.place(value) }),
        drawn("text", { x: box.left - 8, y: up.place(value) + 4, "text-anchor": "end" }, upText(value)),
    ]);
    const below = ticks(across, Math.max(2, Math.round(width / 85))).map((value) => [
        drawn("line", { class: "grid", x1: across.place(value), x2: across.place(value), y1: box.top, y2: box.bottom }),
        drawn("text", { x: across.place(value), y: box.bottom + 18, "text-anchor": "middle" }, acrossText(value)),
    ]);
    return drawn(
        "g",
        { "aria-hidden": "true" },
        parts.flat(),
        below.flat(),
        drawn("line", { class: "base", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
        drawn("text", { class: "title", x: 0, y: box.top - 14, "text-anchor": "start" }, upTitle),
        drawn("text", { class: "title", x: box.right, y: box.bottom + 38, "text-anchor": "end" }, acrossTitle),
    );
}

/** The path of a step line: each value holds until the next one. */
function stepPath(places) {
    return places.map(([x, y], at) => (at === 0 ? `M${x} ${y}` : `H${x}V${y}`)).join("");
}
