// What the page knows, made ready to be asked; and the head of the page.

const SETTINGS = ["regularization_weight", "pruning_ratio", "iteration"];
const SHAPES = { front: "frontier", dense: "dense model", confirmed: "confirmed on the test split" };
const WORTH_LOSING = 0.01; // of accuracy, for the sentence at the top

/** The data with what is asked again and again worked out once. Points are named by their place in the columns. */
function prepared(data) {
    const { columns } = data.points;
    const confirmed = new Map();
    for (const row of data.confirmed) confirmed.set(row.point, [...(confirmed.get(row.point) ?? []), row]);
    return {
        data,
        columns,
        count: columns.key.length,
        place: new Map(columns.key.map((key, at) => [key, at])),
        fronts: Object.fromEntries(Object.entries(data.fronts).map(([cost, front]) => [cost, new Set(front)])),
        dense: columns.kind.indexOf("dense"),
        confirmed,
    };
}

/** The points on the way to one, the first first, itself last. */
function wayTo(study, point) {
    const way = [point];
    while (study.data.points.previous[way[0]] !== null) way.unshift(study.data.points.previous[way[0]]);
    return way;
}

/** What a point is drawn as. */
function shapeOf(study, point) {
    if (study.confirmed.has(point)) return "confirmed";
    if (study.columns.kind[point] === "dense") return "dense";
    return study.fronts.flops.has(point) ? "front" : "other";
}

/** [name, text] of all that was varied for a point. */
function settingsOf(study, point) {
    const { columns, data } = study;
    const own = SETTINGS.map((name) => [name, numberText(columns[name][point])]);
    const others = Object.entries(data.points.others).map(([name, values]) => [name, numberText(values[point])]);
    const named = ["model", "dataset", "method"]
        .filter((name) => data.study[`${name}s`].length > 1)
        .map((name) => [name, columns[name][point] ?? NONE]);
    return [...own, ...others, ...named];
}

function nameOf(study, point) {
    if (study.columns.kind[point] === "dense") return "Dense model";
    return `Point ${study.columns.key[point].slice(0, 8)}`;
}

function showHead(study, live) {
    const { data } = study;
    document.title = `${data.study.name} · frontier`;
    fill("name", data.study.name);
    const parts = [listed(data.study.models), "on", listed(data.study.datasets)];
    const methods = data.study.methods.length ? `, pruned by ${listed(data.study.methods)}` : "";
    fill("subject", study.count ? `${parts.join(" ")}${methods}` : "A study that has no point yet");
    showState(data, live);
    fill("answer", ...answer(study));
    fill("facts", ...facts(data));
    fill(
        "colophon",
        `Made ${timeText(data.made)} from ${data.study.path} by pruning-orchestrator. It holds everything ` +
            "it shows, and asks no other computer for anything.",
    );
}

function showState(data, live) {
    const state = byId("state");
    const runs = data.state.driver !== null;
    state.className = runs ? "state runs" : "state";
    const what = runs ? "Search running" : "Search not running";
    state.textContent = `${what} · ${live ? "live" : "as of"} ${timeText(data.made)}`;
    state.title = runs ? data.state.driver : "";
}

function listed(names) {
    return names.length > 3 ? `${names.slice(0, 3).join(", ")} and ${names.length - 3} more` : names.join(", ");
}

/** The sentence at the top: how far the flops fall while the accuracy stays. */
function answer(study) {
    const { columns, data, dense } = study;
    if (dense < 0 || data.fronts.flops.length === 0) return [];
    const least = columns.accuracy[dense] - WORTH_LOSING;
    const found = data.fronts.flops.find((point) => columns.accuracy[point] >= least);
    const before =
        `The dense model has an accuracy of ${shareText(columns.accuracy[dense])} at ` +
        `${countText(columns.flops[dense])} flops.`;
    if (found === undefined || columns.flops_kept[found] >= 1) {
        return [`${before} No smaller point is within ${WORTH_LOSING} of that so far.`];
    }
    return [
        element("strong", {}, `${percentText(columns.flops_kept[found])} of the flops`),
        ` keep an accuracy of ${shareText(columns.accuracy[found])}. `,
        before,
    ];
}

function facts({ state, points }) {
    const saved = state.train_flops_saved ? `${countText(state.train_flops_saved)} saved by reuse` : null;
    return [
        ["hypervolume", state.hypervolume.toFixed(4), null],
        ["points", points.total.toLocaleString("en"), null],
        ["trials ended", state.trials.toLocaleString("en"), state.stopped ? `${state.stopped} stopped early` : null],
        ["train_flops", countText(state.train_flops), saved],
        ["computing time", secondsText(state.seconds), null],
        ["failures", state.failures.toLocaleString("en"), null],
    ].map(([term, value, beside]) =>
        element("div", {}, element("dt", {}, term), element("dd", {}, value, beside && element("small", {}, beside))),
    );
}
