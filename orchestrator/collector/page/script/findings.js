// What the study as a whole tells: hypervolume over cost, importance of settings, troubles, what is counted.

const COURSE_BOX = { left: 58, right: 14, top: 30, bottom: 46 };

function showCourse({ data }) {
    const { train_flops: cost, hypervolume } = data.course;
    const holder = byId("course-chart");
    byId("course").hidden = cost.length === 0;
    if (cost.length === 0) return;
    const width = Math.max(280, holder.clientWidth || 600);
    const height = Math.round(Math.min(320, Math.max(230, 0.42 * width)));
    const box = {
        left: COURSE_BOX.left,
        right: width - COURSE_BOX.right,
        top: COURSE_BOX.top,
        bottom: height - COURSE_BOX.bottom,
    };
    const across = scale([0, cost.at(-1) || 1], [box.left, box.right]);
    const up = scale(courseRange(hypervolume), [box.bottom, box.top]);
    const places = cost.map((spent, nth) => [across.place(spent), up.place(Math.max(up.low, hypervolume[nth]))]);
    const line = stepPath(places);
    const label = `Hypervolume over train_flops: ${hypervolume.at(-1).toFixed(4)} after ${countText(cost.at(-1))}`;
    holder.replaceChildren(
        drawn(
            "svg",
            { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
            axes(box, across, up, {
                acrossText: countText,
                upText: (value) => value.toFixed(up.high - up.low < 0.05 ? 3 : 2),
                acrossTitle: "train_flops of the whole study",
                upTitle: "hypervolume",
            }),
            drawn("path", { class: "under", d: `${line}V${box.bottom}H${places[0][0]}Z` }),
            drawn("path", { class: "step", d: line }),
        ),
    );
    fill("course-note", courseNote(cost, hypervolume));
}

/** The whole course, but for the first jumps from nothing where they would flatten all that follows. */
function courseRange(values) {
    const high = values.at(-1);
    const late = values[Math.floor(values.length / 4)];
    const low = Math.max(0, late - Math.max(0.02, 1.5 * (high - late)));
    return [low, Math.min(1, high + Math.max(0.002, 0.08 * (high - low)))];
}

function courseNote(cost, hypervolume) {
    const most = hypervolume.at(-1);
    const nth = hypervolume.findIndex((value) => value >= 0.95 * most);
    const end = cost.at(-1);
    const share = percentText(cost[nth] / end);
    return `${most.toFixed(4)} after ${countText(end)} train_flops; 95 % of it after ${share} of that cost.`;
}

function showImportance({ data }) {
    fill(
        "importance-body",
        data.importance.map(importanceOf),
        element(
            "p",
            { class: "means" },
            "The share of the variance that goes with a setting, alone or together with the others; what several " +
                "settings do together counts for each of them. Estimated by a random forest, on trials that it " +
                "has not seen.",
        ),
    );
}

function importanceOf({ of, samples, explained, settings, silence }) {
    const title = element(
        "h3",
        {},
        of.replace(/^./, (letter) => letter.toUpperCase()),
    );
    if (silence !== null) return [title, element("p", { class: "means" }, `Nothing to tell: ${silence}.`)];
    const rows = Object.entries(settings).flatMap(([name, share]) => [
        element("span", {}, name),
        share === null ? element("span", { class: "means" }, "did not vary") : bar(share),
        element("span", { class: "count" }, share === null ? NONE : share.toFixed(2)),
    ]);
    return [
        title,
        element("div", { class: "shares" }, rows),
        element(
            "p",
            { class: "means" },
            `${percentText(explained)} of the variance explained, ${plural(samples, "sample")}.`,
        ),
    ];
}

function showTroubles({ data }) {
    const { failures, stopped, frozen, unrepaired, state } = data;
    const several = new Set([...data.study.methods, ...failures.map(({ method }) => method)]).size > 1;
    const settings = ["regularization_weight", "pruning_ratio"];
    const parts = [
        failures.length
            ? troubleTable(
                  "Failures",
                  ["reason", "message", ...(several ? ["method"] : []), ...settings, "stage"],
                  failures.map((one) => [
                      one.reason,
                      one.message,
                      ...(several ? [one.method] : []),
                      numberText(one.regularization_weight),
                      numberText(one.pruning_ratio),
                      one.key.slice(0, 8),
                  ]),
                  state.failures,
                  [1],
              )
            : null,
        stopped.length
            ? troubleTable(
                  "Stopped early: what was left of them could not matter",
                  ["trial", "reason"],
                  stopped.map((one) => [String(one.trial), one.reason]),
                  state.stopped,
                  [1],
              )
            : null,
        frozen.length
            ? troubleTable(
                  "Groups left whole",
                  ["group", "reason", "channels", "stages"],
                  frozen.map((one) => [one.group, one.reason, numberText(one.channels), numberText(one.stages)]),
                  frozen.length,
                  [1],
              )
            : null,
        unrepaired.length
            ? troubleTable(
                  "Layers that lost inputs and were not repaired",
                  ["layer", "reason", "stages"],
                  unrepaired.map((one) => [one.layer, one.reason, numberText(one.stages)]),
                  unrepaired.length,
                  [1],
              )
            : null,
        state.damaged.length
            ? [
                  element("h3", {}, "Stages that cannot be read"),
                  element(
                      "ul",
                      {},
                      state.damaged.map((text) => element("li", {}, text)),
                  ),
              ]
            : null,
    ].filter((part) => part !== null);
    fill(
        "troubles-body",
        parts.length
            ? parts.flat()
            : element("p", { class: "calm" }, "No trial failed, none was stopped early, no stage is damaged."),
    );
}

function troubleTable(title, head, rows, total, texts) {
    const more = total - rows.length;
    return [
        element("h3", {}, `${title} (${total.toLocaleString("en")})`),
        element(
            "div",
            { class: "scroller", tabindex: "0", role: "region", "aria-label": title },
            plainTable(head, rows, texts),
        ),
        more > 0
            ? element(
                  "p",
                  { class: "means" },
                  `${plural(more, "older one")} not listed; \`orchestrator status\` has all.`,
              )
            : null,
    ];
}

function showCounted({ data }) {
    byId("counted-body").replaceWith(
        element(
            "dl",
            { id: "counted-body" },
            Object.entries(data.counted).flatMap(([word, meaning]) => [
                element("dt", {}, word),
                element("dd", {}, meaning),
            ]),
        ),
    );
    fill(
        "limits",
        data.limits.map((limit) => element("li", {}, limit)),
    );
}
