// The page: the visitor's sounds, their names, and those that a sentence finds.

import { WavLink, cosine, decode } from "./wavlink.js";

const LIKELY = 0.5; // the probability of a match below which a sound is marked
const SHOWN = 5; // names of a sound
const element = (id) => document.getElementById(id);
const sounds = []; // of { name, vector, url }
let loading = null, queue = Promise.resolve(), facts = { bytes: 0 };

/** Make an element with text, classes and children. */
function make(tag, text = "", classes = "", ...children) {
    const made = document.createElement(tag);
    made.textContent = text;
    made.className = classes;
    made.append(...children);
    return made;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.01 ? 2 : share < 0.1 ? 1 : 0)} %`;
const report = (text) => { element("status").textContent = text; };
const failure = (text) => make("p", text, "failure");

/** Download the model once, when it is first needed. */
function model() {
    loading ??= (async () => {
        const bar = element("progress");
        let bytes = 0;
        bar.hidden = false;
        bar.max = facts.bytes || 1;
        report("Downloading the model …");
        try {
            return await WavLink.load((more) => { bar.value = bytes += more; });
        } catch (error) {
            loading = null; // the next click tries again
            throw error;
        } finally {
            bar.hidden = true;
        }
    })();
    return loading;
}

/** Add a sound, once those before it are added; a failure is shown beside its name. */
function add(name, file) {
    queue = queue.then(async () => {
        const row = make("li", "", "", make("strong", name));
        element("sounds").append(row);
        try {
            const wavlink = await model();
            report(`Processing ${name} …`);
            const vector = await wavlink.embedSound(await decode(await file.arrayBuffer(), wavlink.about.sampling_rate));
            const sound = { name, vector, url: URL.createObjectURL(file) };
            sounds.push(sound);
            const remove = make("button", "Remove");
            remove.type = "button";
            remove.setAttribute("aria-label", `Remove ${name}`);
            remove.onclick = () => {
                sounds.splice(sounds.indexOf(sound), 1);
                URL.revokeObjectURL(sound.url);
                row.remove();
                element("files").focus();
            };
            row.append(player(sound), remove);
        } catch (error) {
            row.append(failure(`It cannot be read: ${error.message || error.name}.`));
        }
        report(`${sounds.length} ${sounds.length === 1 ? "sound" : "sounds"}.`);
    });
    return queue;
}

function player({ name, url }) {
    const audio = make("audio");
    audio.controls = true;
    audio.preload = "none";
    audio.src = url;
    audio.setAttribute("aria-label", `Play ${name}`);
    return audio;
}

/** Fill `box` with what `work` returns, elements, or with its failure. */
async function answer(form, box, work) {
    if (form.ariaBusy === "true") return;
    form.ariaBusy = "true"; // a disabled button would lose the keyboard's focus
    await queue;
    try {
        if (!sounds.length) throw new Error("Choose a sound first.");
        box.replaceChildren(...await work(await model()));
    } catch (error) {
        box.replaceChildren(failure(error.message));
    }
    form.ariaBusy = "false";
}

/** Return a note that names the texts with words that are not in the model's vocabulary. */
function unknown(wavlink, texts) {
    const lacking = texts.filter((text) => wavlink.tokenize(text).tokens.includes(wavlink.unknown));
    return lacking.length ? [make("p", `This model does not know every word of: ${lacking.join(", ")}.`, "note")] : [];
}

function bar(share) {
    const filled = make("span", "", "bar");
    filled.style.width = `${100 * share}%`;
    const track = make("span", "", "track", filled);
    track.setAttribute("aria-hidden", "true");
    return track;
}

const match = (probability) => probability === null ? "" : `match ${percent(probability)}`;

async function nameSounds(wavlink) {
    const labels = [...new Set(element("labels").value.split(/[,\n]/).map((label) => label.trim()).filter(Boolean))];
    if (labels.length < 2) throw new Error("Give two names or more, separated by commas.");
    const texts = [];
    for (const label of labels) texts.push(await wavlink.embedLabel(label));
    const prompts = wavlink.prompts.map((prompt) => `“${prompt.replace("{}", "(name)")}”`).join(", ");
    const prior = wavlink.about.match_calibration?.prior;
    const note = `Each name is read as ${prompts}. Shares add up to 100 % of these names alone`
        + (prior ? `; a match is the probability that the name fits, where ${percent(prior)} of all sounds do.` : ".");
    return [...unknown(wavlink, labels), ...sounds.map((sound) => {
        const cosines = texts.map((text) => cosine(text, sound.vector)), shares = wavlink.shares(cosines);
        const order = labels.map((_, n) => n).sort((a, b) => cosines[b] - cosines[a]).slice(0, SHOWN);
        return make("section", "", "", make("h3", sound.name), make("ol", "", "bars", ...order.map((n) => make(
            "li", "", "", make("strong", labels[n]), make("span", percent(shares[n])), bar(shares[n]),
            make("span", match(wavlink.probability(cosines[n])), "note"),
        ))));
    }), make("p", note, "note")];
}

async function findSounds(wavlink) {
    const text = element("sentence").value.trim();
    if (!text) throw new Error("Give a sentence.");
    const vector = await wavlink.embedText(text);
    const hits = sounds.map((sound) => ({ sound, score: cosine(vector, sound.vector) })).sort((a, b) => b.score - a.score);
    const rows = hits.map(({ sound, score }) => {
        const probability = wavlink.probability(score), unlikely = probability !== null && probability < LIKELY;
        const words = [`cosine ${score.toFixed(3)}`, match(probability), unlikely ? "probably not this" : ""];
        const note = make("span", words.filter(Boolean).join(", "), "note");
        return make("li", "", unlikely ? "unlikely" : "", make("strong", sound.name), note, player(sound));
    });
    return [...unknown(wavlink, [text]), make("ol", "", "hits", ...rows)];
}

function submit(id, box, work) {
    const form = element(id);
    form.onsubmit = (event) => {
        event.preventDefault();
        answer(form, element(box), work);
    };
}

submit("name", "names", nameSounds);
submit("find", "found", findSounds);
element("files").onchange = (event) => {
    for (const file of event.target.files) add(file.name, file);
    event.target.value = "";
};
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
    event.preventDefault();
    for (const file of event.dataTransfer.files) add(file.name, file);
};
fetch("space.json").then((response) => response.json()).then((space) => {
    facts = space;
    element("cost").textContent = `The model is downloaded once, at the first sound: ${Math.round(space.bytes / 1e6)} MB.`;
    element("about").textContent = `${space.model}, revision ${space.revision}; ${space.precision}.`;
    element("examples").onclick = async () => {
        for (const name of space.examples) add(name, await (await fetch(`sounds/${name}`)).blob());
    };
});
