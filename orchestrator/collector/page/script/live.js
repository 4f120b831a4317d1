// A live page asks its server for the study again and again, and shows what is new without losing its place.

const PAUSE = 2000; // milliseconds between two questions

function followStudy(app) {
    let known = null;
    const ask = async () => {
        try {
            const answered = await fetch("data.json", {
                headers: known === null ? {} : { "If-None-Match": known },
                cache: "no-store",
            });
            if (answered.status === 200) {
                known = answered.headers.get("ETag");
                app.renew(await answered.json());
            } else if (answered.status !== 304) {
                lose(`The study cannot be read at the moment: ${await answered.text()}`);
            } else {
                showState(app.study.data, true);
            }
        } catch {
            lose("No answer from orchestrator watch; this page shows what was last known");
        }
        setTimeout(ask, PAUSE);
    };
    setTimeout(ask, PAUSE);
}

function lose(message) {
    byId("state").className = "state lost";
    byId("state").textContent = message;
}
