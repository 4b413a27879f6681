// Names and finds sounds with an exported WavLink, inside the visitor's browser: nothing is uploaded.

import * as ort from "./npm/ort.wasm.bundle.min.mjs";
import { Tokenizer } from "./npm/tokenizers.min.mjs";

const DECODED_RATE = 48000; // Hz, where a file does not state its rate as `rateOf` reads it
const LONGEST = 600; // seconds of a sound
const MOST_THREADS = 4;

// From a file to samples.

/** Return the sampling rate that a WAV, FLAC, Ogg Vorbis or MP3 file states, in Hz; of others `DECODED_RATE`. */
export function rateOf(bytes) {
    const view = new DataView(bytes);
    const text = (at, count) => at + count > bytes.byteLength ? "" : String.fromCharCode(...new Uint8Array(bytes, at, count));
    let rate = 0;
    if (text(0, 4) === "RIFF" && text(8, 4) === "WAVE") {
        let at = 12;
        while (at + 16 <= bytes.byteLength && text(at, 4) !== "fmt ") {
            const size = view.getUint32(at + 4, true);
            at += 8 + size + size % 2;
        }
        if (text(at, 4) === "fmt ") rate = view.getUint32(at + 12, true);
    } else if (text(0, 4) === "fLaC") {
        rate = view.getUint32(18) >>> 12;
    } else if (text(0, 4) === "OggS" && text(28, 7) === "\x01vorbis") {
        rate = view.getUint32(40, true);
    } else {
        const digit = (n) => view.getUint8(n);
        const at = text(0, 3) === "ID3" ? 10 + (digit(6) << 21 | digit(7) << 14 | digit(8) << 7 | digit(9)) : 0;
        if (at + 4 <= bytes.byteLength && view.getUint16(at) >= 0xffe0 && digit(at + 1) & 6) { // MPEG: version, rate
            const rates = { 3: [44100, 48000, 32000], 2: [22050, 24000, 16000], 0: [11025, 12000, 8000] };
            rate = rates[digit(at + 1) >> 3 & 3]?.[digit(at + 2) >> 2 & 3];
        }
    }
    return rate >= 8000 && rate <= 96000 ? rate : DECODED_RATE; // what every browser decodes at
}

/** Decode a file, an ArrayBuffer, to mono samples at `rate` Hz. */
export async function decode(bytes, rate) {
    const own = rateOf(bytes); // at which the browser, whose resampling differs from others', need not resample
    const decoded = await new OfflineAudioContext(1, 1, own).decodeAudioData(bytes.slice(0));
    if (decoded.duration > LONGEST) throw new Error(`longer than ${LONGEST / 60} minutes`);
    const channels = Array.from({ length: decoded.numberOfChannels }, (_, n) => decoded.getChannelData(n));
    return resample(mono(channels, own), own, rate);
}

/** Mix channels to their mean, and those that cancel each other out as `processing/downmix_wavlink.py` does. */
export function mono(channels, rate) {
    const count = channels.length, length = channels[0].length;
    if (count === 1) return channels[0];
    const mixed = new Float32Array(length), block = Math.min(rate, 2 ** 16, Math.floor(2 ** 20 / count));
    const dot = (a, b) => a.reduce((sum, value, n) => sum + value * b[n], 0);
    const sum = (parts, signs) => parts[0].map((_, n) => parts.reduce((total, part, c) => total + signs[c] * part[n], 0));
    let signs = null;
    for (let start = 0; start < length; start += block) {
        const parts = channels.map((channel) => channel.subarray(start, start + block));
        if (!signs || parts[0].length === block) {
            const whole = sum(parts, signs = Array(count).fill(1));
            if (dot(whole, whole) < 0.03 * parts.reduce((energy, part) => energy + dot(part, part), 0)) {
                parts.forEach((part, c) => { // inverted where that makes the sum of those before it louder
                    signs[c] = c && dot(sum(parts.slice(0, c), signs), part) < 0 ? -1 : 1;
                });
            }
        }
        mixed.set(sum(parts, signs).map((value) => value / count), start);
    }
    return mixed;
}

/** Resample by a Kaiser-windowed sinc: flat to 0.913 of the lower Nyquist rate, 100 dB down above it, as soxr's HQ. */
export function resample(samples, from, to) {
    if (from === to) return samples;
    const divisor = ((a, b) => { while (b) [a, b] = [b, a % b]; return a; })(from, to);
    const up = to / divisor, down = from / divisor, nyquist = Math.min(1, to / from);
    const cutoff = 0.9565 * nyquist, half = Math.ceil(73.7 / nyquist), beta = 10.06;
    const bessel = (x) => { // I0
        let sum = 1;
        for (let term = 1, n = 1; term > 1e-12 * sum; n++) sum += term *= (x / (2 * n)) ** 2;
        return sum;
    };
    const kernel = (t) => Math.abs(t) >= half ? 0
        : cutoff * (t ? Math.sin(Math.PI * cutoff * t) / (Math.PI * cutoff * t) : 1)
            * bessel(beta * Math.sqrt(1 - (t / half) ** 2)) / bessel(beta);
    const kernels = new Map(); // by phase, the weights of 2 * half samples
    const resampled = new Float32Array(Math.round(samples.length * up / down));
    for (let n = 0; n < resampled.length; n++) {
        const first = Math.floor(n * down / up) - half + 1, phase = n * down % up;
        if (!kernels.has(phase)) {
            kernels.set(phase, Float64Array.from({ length: 2 * half }, (_, k) => kernel(k - half + 1 - phase / up)));
        }
        const weights = kernels.get(phase), end = Math.min(2 * half, samples.length - first);
        let sum = 0;
        for (let k = Math.max(0, -first); k < end; k++) sum += weights[k] * samples[first + k];
        resampled[n] = sum;
    }
    return resampled;
}

// From samples to the model's input.

/** Return a function that replaces `re` and `im`, Float64Arrays of `size` numbers, by their Fourier transform. */
function fourier(size) {
    const cos = Float64Array.from({ length: size }, (_, n) => Math.cos(2 * Math.PI * n / size));
    const sin = Float64Array.from({ length: size }, (_, n) => -Math.sin(2 * Math.PI * n / size));
    const factors = [];
    for (let rest = size, prime = 2; rest > 1;) rest % prime ? prime++ : (factors.push(prime), rest /= prime);
    const other = [new Float64Array(size), new Float64Array(size)];
    return (re, im) => {
        let [a, b, x, y] = [re, im, ...other], stride = 1;
        for (const radix of factors) { // Stockham's order, which needs no permutation
            const parts = size / stride / radix;
            for (let k = 0; k < parts; k++) {
                for (let j = 0; j < radix; j++) {
                    const to = stride * (radix * k + j);
                    x.fill(0, to, to + stride);
                    y.fill(0, to, to + stride);
                    for (let r = 0; r < radix; r++) {
                        const turn = j * (r * parts + k) * stride % size, c = cos[turn], s = sin[turn];
                        const at = stride * (k + parts * r);
                        for (let q = 0; q < stride; q++) {
                            x[to + q] += a[at + q] * c - b[at + q] * s;
                            y[to + q] += a[at + q] * s + b[at + q] * c;
                        }
                    }
                }
            }
            [a, b, x, y] = [x, y, a, b];
            stride *= radix;
        }
        if (a !== re) re.set(a), im.set(b);
    };
}

/** Compute Whisper's log-mel of a clip, Float32Array of F * frames: at its own length, or padded to 30 s. */
export function logMel(clip, about, filters) {
    const { n_fft: size, hop_length: hop, max_samples: longest } = about, half = size / 2;
    const kept = about.padding === "max_length" ? longest / hop : Math.ceil(clip.length / hop);
    const length = Math.min((kept + 2) * hop, longest), frames = length / hop; // two more overlap the clip's end
    const padded = new Float64Array(length + size);
    for (let n = 0; n < padded.length; n++) { // reflected at both edges
        const at = Math.abs(n - half);
        padded[n] = clip[at < length ? at : 2 * (length - 1) - at] ?? 0;
    }
    const window = Float64Array.from({ length: size }, (_, n) => 0.5 - 0.5 * Math.cos(2 * Math.PI * n / size));
    const transform = fourier(size), re = new Float64Array(size), im = new Float64Array(size);
    const logs = new Float64Array(filters.length * frames);
    let highest = -Infinity;
    for (let frame = 0; frame < frames; frame += 2) { // two real frames in one complex transform
        const second = frame + 1 < frames ? hop : 0;
        for (let n = 0; n < size; n++) {
            re[n] = window[n] * padded[frame * hop + n];
            im[n] = window[n] * padded[frame * hop + second + n];
        }
        transform(re, im);
        for (let of = 0; of < (second ? 2 : 1); of++) {
            filters.forEach(({ first, weights }, f) => {
                let energy = 0;
                for (let w = 0; w < weights.length; w++) {
                    const k = first + w, back = (size - k) % size, sign = of ? -1 : 1;
                    energy += weights[w] * ((re[k] + sign * re[back]) ** 2 + (im[k] - sign * im[back]) ** 2) / 4;
                }
                const log = Math.log10(Math.max(energy, 1e-10));
                highest = Math.max(highest, log);
                logs[f * frames + frame + of] = log;
            });
        }
    }
    const features = new Float32Array(filters.length * kept);
    for (let f = 0; f < filters.length; f++) {
        for (let t = 0; t < kept; t++) features[f * kept + t] = (Math.max(logs[f * frames + t], highest - 8) + 4) / 4;
    }
    return features;
}

/** Return the weights that are not 0 of each mel filter, from numpy's file of float32 [n_fft / 2 + 1, F]. */
function melFilters(npy) {
    const start = 10 + new DataView(npy).getUint16(8, true);
    const bins = Number(/'shape': \((\d+)/.exec(new TextDecoder().decode(npy.slice(10, start)))[1]);
    const values = new Float32Array(npy.slice(start)), count = values.length / bins;
    return Array.from({ length: count }, (_, f) => {
        const column = Array.from({ length: bins }, (_, k) => values[k * count + f]);
        const first = column.findIndex((weight) => weight), last = column.findLastIndex((weight) => weight);
        return { first: Math.max(first, 0), weights: first < 0 ? [] : column.slice(first, last + 1) };
    });
}

// The model.

/** Fetch a file; `progress` is called with the number of bytes of each part. */
async function fetched(path, progress = () => {}) {
    const response = await fetch(path);
    if (!response.ok) throw new Error(`${path} cannot be downloaded (${response.status})`);
    const counted = new TransformStream({
        transform(part, controller) {
            progress(part.length);
            controller.enqueue(part);
        },
    });
    return new Response(response.body.pipeThrough(counted)).arrayBuffer();
}

/** Decompress a .gz file, unless the server has sent it so that the browser already did. */
async function unpacked(bytes) {
    if (new DataView(bytes).getUint16(0) !== 0x1f8b) return bytes;
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

export class WavLink {
    /** Download an exported model, and start its runtime. */
    static async load(progress) {
        const json = async (path) => JSON.parse(new TextDecoder().decode(await fetched(path, progress)));
        const [about, tokenizer, config, filters, runtime, audio, text] = await Promise.all([
            ...["wavlink_onnx.json", "tokenizer.json", "tokenizer_config.json"].map((name) => json(`model/${name}`)),
            fetched("model/mel_filters.npy", progress),
            fetched("npm/ort-wasm-simd-threaded.wasm.gz", progress),
            fetched("model/audio.onnx", progress),
            fetched("model/text.onnx", progress),
        ]);
        ort.env.wasm.wasmBinary = await unpacked(runtime);
        ort.env.wasm.numThreads = crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;
        const model = new WavLink();
        model.about = about;
        model.prompts = about.label_prompts ?? ["This is a sound of {}."];
        model.filters = melFilters(filters);
        model.tokenizer = new Tokenizer(tokenizer, config);
        model.unknown = tokenizer.model.type === "BPE" ? null : tokenizer.model.unk_token; // of words it lacks
        model.audio = await ort.InferenceSession.create(new Uint8Array(audio), { executionProviders: ["wasm"] });
        model.text = await ort.InferenceSession.create(new Uint8Array(text), { executionProviders: ["wasm"] });
        return model;
    }

    /** Embed mono samples at the model's rate, of any length, as one unit vector. */
    async embedSound(samples) {
        if (!samples.length) throw new Error("it has no samples");
        const limit = this.about.max_samples, count = Math.ceil(samples.length / limit);
        const vectors = [];
        for (let n = 0; n < count; n++) { // as few windows as cover it, evenly spaced
            const start = count > 1 ? Math.floor(n * (samples.length - limit) / (count - 1)) : 0;
            const features = logMel(samples.subarray(start, start + limit), this.about, this.filters);
            const frames = features.length / this.filters.length;
            const inputs = { input_features: new ort.Tensor("float32", features, [1, this.filters.length, frames]) };
            inputs.input_features_mask = new ort.Tensor("int64", new BigInt64Array(frames).fill(1n), [1, frames]);
            vectors.push((await this.audio.run(inputs)).audio_embeds.data);
        }
        return mean(vectors);
    }

    /** Return the tokens of a text: `ids` and `tokens`. */
    tokenize(text) {
        const encoded = this.tokenizer.encode(text), limit = this.about.text_max_length ?? Infinity;
        if (encoded.ids.length > limit) throw new Error(`“${text.slice(0, 40)}…” is too long: ${limit} tokens are the most`);
        return encoded;
    }

    /** Embed a text as a unit vector. */
    async embedText(text) {
        const ids = BigInt64Array.from(this.tokenize(text).ids, BigInt), shape = [1, ids.length];
        const inputs = { input_ids: new ort.Tensor("int64", ids, shape) };
        inputs.attention_mask = new ort.Tensor("int64", new BigInt64Array(ids.length).fill(1n), shape);
        return (await this.text.run(inputs)).text_embeds.data;
    }

    /** Embed a label in each of the model's prompts, as the mean of their vectors. */
    async embedLabel(label) {
        const vectors = [], words = label.replaceAll("_", " ");
        for (const prompt of this.prompts) vectors.push(await this.embedText(prompt.replace("{}", () => words)));
        return mean(vectors);
    }

    /** Return the share of each label among them all: the softmax of the scaled cosines. */
    shares(cosines) {
        const scale = Math.exp(this.about.logit_scale), highest = Math.max(...cosines);
        const parts = cosines.map((cosine) => Math.exp(scale * (cosine - highest)));
        return parts.map((part) => part / parts.reduce((sum, one) => sum + one));
    }

    /** Return the probability that a sound matches a text, null where the model has no calibration. */
    probability(cosine) {
        const fit = this.about.match_calibration?.dims[this.about.projection_dim];
        return fit ? 1 / (1 + Math.exp(-(fit.slope * cosine + fit.intercept))) : null;
    }
}

/** Return the mean of unit vectors, as a unit vector. */
function mean(vectors) {
    if (vectors.length === 1) return vectors[0];
    const sum = vectors[0].map((_, n) => vectors.reduce((total, vector) => total + vector[n], 0));
    const length = Math.hypot(...sum);
    return sum.map((value) => value / length);
}

/** Return the inner product of two vectors. */
export const cosine = (a, b) => a.reduce((sum, value, n) => sum + value * b[n], 0);
