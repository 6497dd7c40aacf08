"use strict";
/* The atlas in the browser.

   Data come as classic scripts that call aapeAtlas(key, value), because browsers block fetch and modules on file://.
   What is seen stands in the address: #m=model&t=task, then c=class, or l=layer&n=neuron, or find=1.
   A neuron is layer * width + number, called flat. Names from the data go in as text, never as markup. */

const SCHEMA = 3; // format of the data
const ROWS = 100; // of a long list, at a time
const TOP = 0; // role of the most active clips
const SECTIONS = [
  { title: "Most active", roles: [TOP], grid: "clips wide",
    say: () => "The clips with the largest share of active tokens, at most one per recording or speaker where there are enough." },
  { title: "Most active in other classes", roles: [5], grid: "clips",
    say: (own) => `Among clips that are not of ${own}, the neuron is most active in these, apart from those above.` },
  { title: "Least active in its own classes", roles: [6], grid: "clips",
    say: (own) => `Among clips of ${own}, the neuron is least active in these.` },
  { title: "From the most to the least active quarter of all clips", roles: [1, 2, 3, 4], grid: "clips four",
    say: () => "Random examples from each quarter, because the most active clips alone can mislead." },
  { title: "At random", roles: [7], grid: "clips", say: () => "Random clips of the task." },
];
const SCORES = [["auprc", "AUPRC"], ["f1", "F1"], ["iou", "IoU"]];
const FLAGS = { // what makes a neuron doubtful -> a sentence
  padding: ({ padding: [silence, sound] }) => `More active on zero padding (${percent(silence)} of its tokens) than on sound
    (${percent(sound)}): this neuron responds to the silence after a clip.`,
  position: ({ position }) => `Active at the same time in every clip (${percent(position)} of the variance of its time course):
    this neuron responds to the position in the clip rather than to the sound.`,
};
const SECOND = 1; // s, of the most active part of a clip
const QUARTERS = { 1: "1st quarter", 2: "2nd quarter", 3: "3rd quarter", 4: "4th quarter" };

// -- data -------------------------------------------------------------------------------------------------------------

const embedded = window.aapeEmbedded; // in a notebook's frame: {address, files: name -> data URL}
let index; // of the atlas: study and pairs
const values = new Map(); // key -> what its script handed over
const loading = new Map(); // key -> promise
const pairs = new Map(); // folder -> pair, decoded

window.aapeAtlas = (key, value) => {
  values.set(key, value);
  if (key === "index") start(value);
};

function load(key) {
  if (values.has(key)) return Promise.resolve(values.get(key));
  if (!loading.has(key)) {
    const script = document.createElement("script");
    const arrival = new Promise((done, fail) => {
      script.onload = () => (values.has(key) ? done(values.get(key)) : fail(new Error(`${key}.js is damaged.`)));
      script.onerror = () => fail(new Error(`${key}.js is missing: the atlas is not whole. Build it again.`));
    }).then((value) => {
      if (value.v !== SCHEMA) throw new Error(`${key}.js has format ${value.v}; this page knows ${SCHEMA}.`);
      return value;
    });
    loading.set(key, arrival);
    script.src = `${key}.js`;
    document.head.append(script);
  }
  return loading.get(key);
}

function bytes(base64) {
  const raw = atob(base64), array = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) array[i] = raw.charCodeAt(i);
  return array;
}
const numbers = (base64, Kind) => new Kind(bytes(base64).buffer);
const entryOf = (m, t) => index.pairs.find((e) => e.m === m && e.t === t);

/** One model on one task: its classes and clips, and what the search knows of all neurons. */
async function pairOf(entry) {
  if (pairs.has(entry.folder)) return pairs.get(entry.folder);
  const raw = await load(`${entry.folder}/pair`);
  const pair = { ...raw, entry, names: raw.classes.map((c) => c.name), aape: numbers(raw.aape, Float32Array) };
  pair.size = pair.aape.length;
  Object.assign(pair, raw.p ? wholeTable(bytes(raw.p), pair.names.length) : largestOnly(raw.p_top));
  const { shares, each } = pair; // the largest p of every neuron, once: the search sorts by it those without a class
  pair.top = new Uint8Array(pair.size);
  for (let i = 0; i < shares.length; i++) if (shares[i] > pair.top[(i / each) | 0]) pair.top[(i / each) | 0] = shares[i];
  pair.ofNeuron = new Map(); // flat -> its classes, strongest first: [{c, p, q, calibrated, out, scores}]
  pair.ofClass = pair.names.map(() => []); // class -> its neurons, strongest first
  const { members } = raw, at = numbers(members.at, Uint32Array), classes = numbers(members.c, Uint16Array);
  const q = numbers(members.q, Float32Array), calibrated = bytes(members.calibrated), out = bytes(members.out);
  const own = members.p && bytes(members.p); // where the table has the largest p alone, which need not be among these
  const scores = SCORES.map(([key]) => members[key] && numbers(members[key], Float32Array));
  at.forEach((flat, i) => {
    if (!pair.ofNeuron.has(flat)) pair.ofNeuron.set(flat, []);
    pair.ofNeuron.get(flat).push({ c: classes[i], p: own ? own[i] / 255 : pair.p(flat, classes[i]), q: q[i],
      calibrated: calibrated[i], out: out[i] / 255, scores: scores.map((s) => s?.[i]) });
    pair.ofClass[classes[i]].push(flat);
  });
  pair.paged = new Set();
  for (const [layer, list] of Object.entries(raw.pages)) for (const n of list) pair.paged.add(layer * raw.width + n);
  pair.sorted = Float32Array.from(pair.aape).sort();
  pairs.set(entry.folder, pair);
  return pair;
}

const wholeTable = (p, classes) => ({
  shares: p, each: classes,
  p: (flat, c) => p[flat * classes + c] / 255,
  row: (flat) => Array.from(p.subarray(flat * classes, (flat + 1) * classes), (x, c) => ({ c, p: x / 255 })),
});
/** Of many classes the largest few of each neuron. */
function largestOnly({ k, c, p }) {
  const classes = numbers(c, Uint16Array), shares = bytes(p);
  const row = (flat) => Array.from({ length: k }, (_, i) => ({ c: classes[flat * k + i], p: shares[flat * k + i] / 255 }));
  const one = (flat, which) => {
    const place = classes.subarray(flat * k, (flat + 1) * k).indexOf(which);
    return place < 0 ? undefined : shares[flat * k + place] / 255;
  };
  return { shares, each: k, row, p: one };
}
const largest = (pair, flat) => pair.row(flat).reduce((best, x) => (x.p > best.p ? x : best));

/** The record of a neuron that has a page, else null. */
async function recordOf(pair, flat) {
  if (!pair.paged.has(flat)) return null;
  const layer = String(Math.floor(flat / pair.width)).padStart(2, "0");
  const { records } = await load(`${pair.entry.folder}/L${layer}`);
  if (!records[flat % pair.width]) throw new Error(`${pair.entry.folder}/L${layer}.js is of another build. Build it again.`);
  return records[flat % pair.width];
}

/** Levels 0..1 of a record's map of its clip number `place`, frequency from the lowest upwards: [frequency * time]. */
function mapOf(pair, record, place) {
  const size = pair.grid[0] * pair.grid[1], packed = bytes(record.maps);
  return Float32Array.from({ length: size }, (_, i) => {
    const cell = place * size + i, two = packed[cell >> 1];
    return (cell % 2 ? two & 15 : two >> 4) / 15;
  });
}

// -- search -----------------------------------------------------------------------------------------------------------

const SORTS = { // name -> [value of a neuron, largest first]
  name: [(pair) => (flat) => flat, false],
  aape: [(pair) => (flat) => pair.aape[flat], false],
  q: [(pair, c) => (flat) => lineOf(pair, flat, c).q, false],
  p: [(pair, c) => (flat) => lineOf(pair, flat, c).p, true],
  classes: [(pair) => (flat) => pair.ofNeuron.get(flat)?.length, false],
};
/** What a list says of a neuron, sorts it and finds it by, all of one class: the chosen one, else (c < 0) the neuron's
    first: {c, p, out, q, calibrated}. Only p where it is not specific to that class, the largest where it has none. */
function lineOf(pair, flat, c) {
  const mine = pair.ofNeuron.get(flat), own = c < 0 ? mine?.[0] : mine?.find((x) => x.c === c);
  return own || { p: c < 0 ? pair.top[flat] / 255 : pair.p(flat, c) };
}
const classIn = (pair, params) => (params.has("c") ? pair.names.indexOf(params.get("c")) : -1);
const sortOf = (pair, params) => {
  const name = SORTS[params.get("s")] ? params.get("s") : params.has("c") ? "p" : "aape";
  return { name, falling: params.has("desc") ? params.get("desc") === "1" : SORTS[name][1] };
};

/** Neurons that a search finds, in its order. Parameters: q text, c class, layer, only, s(ort), desc. */
function search(pair, params) {
  const c = classIn(pair, params), only = params.get("only") || "specific";
  const layer = params.has("layer") ? Number(params.get("layer")) : null;
  const fits = matcher(pair, folded(params.get("q") || ""));
  const found = [];
  for (let flat = 0; flat < pair.size; flat++) {
    if (!fits(flat) || (layer !== null && Math.floor(flat / pair.width) !== layer)) continue;
    const { calibrated } = lineOf(pair, flat, c);
    if ((only !== "all" && !known(calibrated)) || (only === "calibrated" && calibrated !== 1)) continue;
    found.push(flat);
  }
  const { name, falling } = sortOf(pair, params), value = SORTS[name][0](pair, c), sign = falling ? -1 : 1;
  const keys = Float64Array.from(found, (flat) => value(flat) ?? NaN);
  const order = Uint32Array.from(found.keys()).sort((a, b) => {
    const x = keys[a], y = keys[b]; // what has no value comes last
    return x === y ? a - b : x !== x ? (y !== y ? a - b : 1) : y !== y ? -1 : sign * (x - y);
  });
  return Array.from(order, (i) => found[i]);
}

/** For comparing names: an é may come as one character or as two, and _ stands for a space. */
const folded = (text) => text.toLowerCase().normalize("NFC").replaceAll("_", " ").trim();
/** Classes of any task whose name holds a text, those of the chosen task first: [{entry, name}] */
function classesNamed(text, chosen) {
  const sought = folded(text), found = [];
  if (!sought) return found;
  const entries = [...index.pairs].sort((a, b) => (b === chosen) - (a === chosen) || (b.m === chosen.m) - (a.m === chosen.m));
  const seen = new Set();
  for (const entry of entries) {
    for (const [name] of entry.classes) {
      const key = `${entry.t} ${name}`; // of several models the chosen one's
      if (!folded(name).includes(sought) || seen.has(key)) continue;
      seen.add(key);
      found.push({ entry, name });
    }
  }
  return found;
}

/** Whether a neuron fits a text: a class's name or a part of it, a layer (L3), a neuron (2233), both (3/2233), or a class
    and a layer (siren L3). A class may be called like a neuron. */
function matcher(pair, text) {
  if (!text) return () => true;
  const both = text.match(/^l?(\d+)\s*[/.,: ]\s*n?(\d+)$/), layer = text.match(/^l(\d+)$/), number = text.match(/^n?(\d+)$/);
  const inLayer = text.match(/(?:^|\s)l(\d+)(?=\s|$)/), words = inLayer ? text.replace(inLayer[0], " ").trim() : text;
  const named = new Set(pair.names.flatMap((name, c) => (words && folded(name).includes(words) ? pair.ofClass[c] : [])));
  const whole = new Set(pair.names.flatMap((name, c) => (folded(name).includes(text) ? pair.ofClass[c] : [])));
  return (flat) =>
    whole.has(flat) || (inLayer !== null && named.has(flat) && Math.floor(flat / pair.width) === Number(inLayer[1])) ||
    (both !== null && both[2] < pair.width && flat === both[1] * pair.width + Number(both[2])) ||
    (layer !== null && Math.floor(flat / pair.width) === Number(layer[1])) ||
    (number !== null && flat % pair.width === Number(number[1]));
}

// -- small things -----------------------------------------------------------------------------------------------------

const templates = new WeakMap();

/** An element from a template. Values go in as text, nodes, lists of both, attributes, or listeners (onclick=${f}). */
function html(strings, ...parts) {
  if (!templates.has(strings)) {
    const template = document.createElement("template");
    const marked = strings.map((text, i) => (i === strings.length - 1 ? text : text + (text.endsWith("=") ? `@@${i}` : `<!--@@${i}-->`)));
    template.innerHTML = marked.join("").trim();
    templates.set(strings, template);
  }
  const root = templates.get(strings).content.cloneNode(true);
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_COMMENT), nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  for (const node of nodes) {
    if (node.nodeType === Node.COMMENT_NODE) node.replaceWith(...shown([parts[node.data.slice(2)]]));
    else for (const { name, value } of [...node.attributes]) if (value.startsWith("@@")) set(node, name, parts[value.slice(2)]);
  }
  return root.firstElementChild;
}
const shown = (list) => list.flat(Infinity).filter((x) => x !== null && x !== undefined && x !== false);
function set(node, name, value) {
  node.removeAttribute(name);
  if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
  else if (value === true) node.setAttribute(name, "");
  else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
}

const known = (x) => x !== null && x !== undefined && x === x;
const fixed = (x, digits) => (known(x) ? x.toFixed(digits).replace(/^-(?=[0.]+$)/, "") : "–"); // never "-0.00"
const percent = (x, digits = 0) => (known(x) ? `${fixed(100 * x, digits)}\u202f%` : "–");
const css = (share) => `${(100 * share).toFixed(2)}%`;
const count = (x) => (known(x) ? Math.round(x).toLocaleString("en") : "–");
function small(x) {
  if (!known(x)) return "–";
  if (x >= 0.001 || x === 0) return String(Number(x.toPrecision(2)));
  const [digit, power] = x.toExponential(0).split("e-");
  return `${digit}\u202f×\u202f10⁻${power.replace(/\d/g, (d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d])}`;
}
const some = (names, most) => names.slice(0, most).join(", ") + (names.length > most ? ` and ${names.length - most} more` : "");
const name = (pair, flat) => `${Math.floor(flat / pair.width)}/${flat % pair.width}`;
/** A name that may break after each _. */
const breakable = (text) => text.split(/(?<=_)/).flatMap((part, i) => (i ? [document.createElement("wbr"), part] : [part]));
const classNames = (pair, list) => list.map((x) => pair.names[x.c]);

const fileOf = (name) => (embedded ? embedded.files[name] : `clips/${name}`);
const address = () => (embedded ? embedded.address : location.hash.slice(1));
const here = () => new URLSearchParams(address());
function go(to) { // to an address such as #m=model&t=task; a frame has none of its own
  if (!embedded) location.hash = to;
  else {
    embedded.address = to.slice(1);
    draw();
  }
}
const href = (params) => "#" + new URLSearchParams(Object.entries(params).filter(([, v]) => known(v) && v !== ""));
const of = (entry, more) => href({ m: entry.m, t: entry.t, ...more });
const toNeuron = (pair, flat, list) => of(pair.entry, { ...list, l: Math.floor(flat / pair.width), n: flat % pair.width });
const listIn = (params) => Object.fromEntries([...params].filter(([key]) => !["m", "t", "l", "n", "u"].includes(key)));
function change(changes) { // of the address, without a step in the browser's history
  const to = href({ ...Object.fromEntries(here()), ...changes });
  if (embedded) embedded.address = to.slice(1);
  else history.replaceState(null, "", to);
  draw();
}

function say(text) {
  const place = document.getElementById("said");
  place.replaceChildren(html`<span>${text}</span>`);
  clearTimeout(say.timer);
  say.timer = setTimeout(() => place.replaceChildren(), 2500);
}
async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text); // over plain http there is no clipboard at all
    say(`${what} copied`);
  } catch {
    say("The browser does not let it be copied.");
  }
}

// -- clips ------------------------------------------------------------------------------------------------------------

let playing = null; // the card that sounds
let queue = []; // cards that follow it

function stop() {
  queue = [];
  playing?.querySelector("audio").pause();
}
function play(card, following = []) {
  const audio = card.querySelector("audio");
  if (playing !== card) stop();
  queue = following;
  if (audio.ended) audio.currentTime = 0;
  audio.play().catch((error) => error.name !== "AbortError" && say("This clip cannot be played."));
}
function playAll(cards) {
  const [first, ...rest] = cards.filter((card) => card.querySelector("audio"));
  if (!first) return say("None of these clips can be heard.");
  first.querySelector("audio").currentTime = 0;
  play(first, rest);
}
const players = (text, start, id) => html`<span class="row"><button class="main" id=${id} onclick=${start}>▶ ${text}</button>
  <button onclick=${stop}>Stop</button></span>`;

/** A clip: its spectrogram, the neuron's map over it, and a player with a cursor and a meter of the neuron's activation.

    large: with a player of the most active second, and of the clip as filtered by the neuron where there is one.
    secret: the class is hidden until the clip is played. */
function card(pair, record, place, { label, large, secret } = {}) {
  const [number, role, share] = record.clips[place];
  const [sound, image, seconds, c, group, split, file] = pair.clips[number];
  const origin = [QUARTERS[role], label, group || file].filter(Boolean).join(" · ");
  const course = record.maps ? courseOf(pair, record, place) : null, second = course && mostActiveSecond(pair, course, seconds);
  const filtered = large && place === 0 && record.filtered;
  const said = secret ? "Play this clip" : `Play ${pair.names[c]}, ${percent(share)} of tokens active`;
  const figure = html`<figure class=${secret ? "clip secret" : "clip"}>
    <div class="scene" onclick=${seek}>
      <img src=${fileOf(image)} alt="" loading="lazy">
      ${record.maps && overlay(pair, record, place)}
      ${seconds < pair.seconds - 0.01 && html`<div class="silent" title="zero padding" style=${`left: ${css(seconds / pair.seconds)}`}></div>`}
      ${(pair.ticks || []).map(([hertz, height]) => html`<span class="hertz" style=${`bottom: ${css(height)}`}>${hertz / 1000}${hertz >= 4000 && " kHz"}</span>`)}
      <div class="cursor"></div>
    </div>
    <div class="seconds" aria-hidden="true">${secondsAxis(pair.seconds).map((t) => html`<span style=${`left: ${css(t / pair.seconds)}`}>${t}${t === 0 ? "" : " s"}</span>`)}</div>
    ${course && html`<div class="meter" title="activation of the neuron at this moment"><i></i></div>`}
    <figcaption>
      <button class="play" aria-label=${said} onclick=${toggle}></button>
      <span class="what"><a href=${of(pair.entry, { c: pair.names[c] })} class=${record.own.includes(c) && "hot"}>${breakable(pair.names[c])}</a>
        <span class="group" title=${`${file}, ${split}`}>${origin}</span></span>
      <span class="share" title="share of tokens at which the neuron is active (above 0)">${percent(share)}</span>
    </figcaption>
    ${large && (second || filtered) && html`<div class="more">
      ${second && html`<button onclick=${playSecond}>▶ Most active second</button>`}
      ${filtered && html`<button aria-pressed="false" onclick=${filter}
        title="only the times and frequencies at which this neuron is active">Filtered by this neuron</button>`}</div>`}
    <audio preload="metadata" src=${fileOf(sound)} onplay=${begin} onpause=${pause} onended=${next}></audio>
  </figure>`;
  const [audio, cursor] = [figure.querySelector("audio"), figure.querySelector(".cursor")];
  const meter = figure.querySelector(".meter i");
  let end = Infinity; // s, where only a part is played
  function seek(event) {
    const box = event.currentTarget.getBoundingClientRect();
    audio.currentTime = Math.min(((event.clientX - box.left) / box.width) * pair.seconds, seconds);
    play(figure);
  }
  function toggle() {
    if (audio.paused) play(figure);
    else stop();
  }
  function playSecond() {
    stop();
    audio.currentTime = second;
    play(figure);
    end = second + SECOND;
  }
  function filter(event) {
    const on = event.currentTarget.getAttribute("aria-pressed") !== "true";
    event.currentTarget.setAttribute("aria-pressed", String(on));
    stop();
    audio.src = fileOf(on ? record.filtered : sound);
    play(figure);
  }
  function begin() {
    playing = figure;
    figure.classList.add("on");
    figure.classList.remove("secret");
    follow();
  }
  function follow() {
    const time = audio.currentTime;
    cursor.style.left = css(time / pair.seconds);
    if (audio.paused) return; // a last call may come after the pause
    if (meter) meter.style.width = css(course[Math.min(Math.floor((time / pair.map_seconds) * course.length), course.length - 1)]);
    if (time >= end) audio.pause();
    requestAnimationFrame(follow);
  }
  function pause() {
    end = Infinity;
    figure.classList.remove("on");
    if (meter) meter.style.width = 0;
    if (playing === figure) playing = null;
  }
  function next() {
    const [following, ...rest] = queue;
    if (!following) return;
    following.scrollIntoView({ block: "nearest" });
    play(following, rest);
  }
  return figure;
}

/** A neuron's activation over the time of a clip, mean over frequency, relative to its largest one in all clips: 0..1. */
function courseOf(pair, record, place) {
  const [rows, columns] = pair.grid;
  const courses = record.courses ??= record.clips.map((_, i) => {
    const levels = mapOf(pair, record, i);
    return Array.from({ length: columns }, (_, t) => {
      let sum = 0;
      for (let f = 0; f < rows; f++) sum += levels[f * columns + t];
      return sum / rows;
    });
  });
  const top = Math.max(1e-9, ...courses.flat());
  return courses[place].map((x) => x / top);
}
/** Where the second begins in which the neuron is most active, s; null in a clip of little more than a second. */
function mostActiveSecond(pair, course, seconds) {
  const cell = pair.map_seconds / course.length, wide = Math.max(1, Math.round(SECOND / cell));
  if (seconds < 1.5 * SECOND) return null;
  let best = 0, most = -1;
  for (let start = 0; (start + wide) * cell <= seconds + cell / 2; start++) {
    const sum = course.slice(start, start + wide).reduce((a, b) => a + b, 0);
    if (sum > most) [best, most] = [start, sum];
  }
  return most > 0 ? Math.min(best * cell, seconds - SECOND) : null;
}
/** Times to write below a picture: at most four steps. */
function secondsAxis(seconds) {
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200].find((x) => seconds / x <= 4) || seconds;
  return Array.from({ length: Math.floor(seconds / step + 1e-6) + 1 }, (_, i) => Number((i * step).toFixed(1)));
}

/** The neuron's map as a canvas of one pixel a cell, the lowest frequency at the bottom. */
function overlay(pair, record, place) {
  const [rows, columns] = pair.grid, levels = mapOf(pair, record, place);
  const width = css(pair.map_seconds / pair.seconds);
  const canvas = html`<canvas data-place=${place} width=${columns} height=${rows} style=${`width: ${width}`}></canvas>`;
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--overlay").split(",").map(Number);
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  for (let f = 0; f < rows; f++) {
    for (let t = 0; t < columns; t++) {
      image.data.set([...colour, Math.round(200 * levels[f * columns + t])], 4 * ((rows - 1 - f) * columns + t));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
function showMaps(on) {
  document.body.classList.toggle("no-maps", !on);
  for (const box of document.querySelectorAll("input[data-maps]")) box.checked = on;
}
const mapsShown = () => !document.body.classList.contains("no-maps");

const topCards = (pair, record, how) =>
  (record?.clips || []).flatMap(([, role], place) => (role === TOP ? [card(pair, record, place, how)] : []));

/** The classes that a record sets against the rest, in words: of a neuron that is specific to all or to none, one. */
function ownOf(pair, { l, n, own }) {
  const mine = pair.ofNeuron.get(l * pair.width + n) || [], first = pair.names[own[0]];
  if (own.length !== mine.length) return `${first}, its strongest class`;
  return own.length === 1 ? first : `its ${own.length} classes`;
}

/** All clips of a record, in sections. */
function listen(pair, record) {
  if (!record.clips.length) {
    return html`<p class="soft">These artifacts hold only probabilities per class and no counts per clip, so no clip
      can be shown. Collect them again to listen to the clips.</p>`;
  }
  const sections = SECTIONS.map(({ title, roles, grid, say }) => {
    const cards = record.clips.flatMap(([, role], place) => (roles.includes(role) ? [card(pair, record, place, { large: role === TOP })] : []));
    const empty = roles[0] === TOP ? "It is active in no clip." : "Every such clip is shown above.";
    const node = html`<section><h3>${title}</h3><p class="soft small">${cards.length ? say(ownOf(pair, record)) : empty}</p>
      ${cards.length > 0 && html`<div class=${grid}>${cards}</div>`}</section>`;
    return { node, cards };
  });
  const box = html`<input type="checkbox" data-maps checked=${mapsShown()} onchange=${(e) => showMaps(e.target.checked)}>`;
  const maps = record.maps
    ? [html`<label>${box} Show where it is active</label>`,
        html`<span class="scale small soft">activation: 0 <i aria-hidden="true"></i> ${record.top}, its largest here</span>`]
    : html`<span class="soft small">No map is drawn: this model does not say where its tokens lie in time.</span>`;
  const [top, elsewhere, inside, ...examples] = sections.map((s) => s.node);
  const controls = html`<div class="row">${players("Play the most active", () => playAll(sections[0].cards), "play")}${maps}</div>`;
  const picture = pair.own_picture === false && html`<p class="soft small">The pictures are plain mel spectrograms, because this
    model does not give its own.</p>`;
  const active = record.aape !== null; // else no class is its strongest
  return [controls, picture, top, active && html`<div class="pairs">${elsewhere}${inside}</div>`, examples];
}

// -- pictures of numbers ----------------------------------------------------------------------------------------------

const legend = (...items) => html`<p class="legend">${items.map(
  ([colour, text]) => html`<span style=${`--swatch: var(--${colour})`}>${text}</span>`)}</p>`;

/** p by class, largest first, before the range of permuted labels where it is known. rows: [{c, p, low, high}] */
function bars(pair, rows, flat) {
  const mine = new Map((pair.ofNeuron.get(flat) || []).map((x) => [x.c, x.calibrated]));
  const sorted = [...rows].sort((a, b) => b.p - a.p), most = sorted.length <= 64 ? sorted : sorted.slice(0, 40);
  const items = most.map(({ c, p, low, high }) => html`<li class=${mine.has(c) && "own"}>
    <a class="name" href=${of(pair.entry, { c: pair.names[c] })} title=${pair.names[c]}>${pair.names[c]}</a>
    <span class="track" title=${known(low) && `permuted labels: ${percent(low, 1)} to ${percent(high, 1)}`}>
      ${known(low) && html`<b style=${`left: ${css(low)}; width: ${css(high - low)}`}></b>`}<i style=${`width: ${css(p)}`}></i>
    </span>
    <span class="value">${percent(p)}${mine.get(c) === 1 && " ✓"}</span></li>`);
  const left = Math.max(sorted.length, pair.names.length) - most.length;
  return [
    legend(["hot", "its classes (✓ significant and large)"], ["bar", "other classes"], ...(known(rows[0]?.low) ? [["band", "95 % range of permuted labels"]] : [])),
    html`<ul class="bars">${items}</ul>`,
    left > 0 && html`<p class="soft small">${left} less active classes are not shown.</p>`,
  ];
}

/** Clips by share of active tokens: those of its classes (see ownOf) upwards, all others downwards. */
function histogram(pair, record) {
  const [inside, rest] = record.histogram, sum = (list) => Math.max(1, list.reduce((a, b) => a + b));
  const sides = [inside, rest].map((list) => list.map((x) => x / sum(list))), top = Math.max(...sides.flat());
  const column = (clips, share, i, side) => html`<i class=${side} style=${`height: ${css(share / top)}`} title=${
    `${clips} clips with ${percent(i / inside.length)} to ${percent((i + 1) / inside.length)} of their tokens active`}></i>`;
  const own = ownOf(pair, record);
  return [
    html`<div class="histogram" role="img" aria-label=${`Clips by share of active tokens: ${own} above, all others below`}>
      <div>${sides[0].map((x, i) => column(inside[i], x, i, "inside"))}</div>
      <div>${sides[1].map((x, i) => column(rest[i], x, i, "rest"))}</div></div>`,
    html`<p class="axis"><span>0 %</span><span>share of active tokens in a clip</span><span>100 %</span></p>`,
    legend(["hot", `${own} (${sum(inside)} clips)`], ["bar", `all others (${sum(rest)})`]),
  ];
}

/** p of one neuron over the classes, tiny. */
function spark(pair, flat, marked) {
  const row = pair.row(flat).sort((a, b) => b.p - a.p).slice(0, 64).sort((a, b) => a.c - b.c);
  return html`<span class="spark" aria-hidden="true" title="one bar per class, in the order of the class list">${row.map(
    ({ c, p }) => html`<i class=${marked.includes(c) && "own"} style=${`height: ${css(p)}`}></i>`)}</span>`;
}

const facts = (...items) => html`<dl class="facts">${items.map(
  ([term, value, note]) => html`<div><dt>${term}</dt><dd>${value}${note && html`<small>${note}</small>`}</dd></div>`)}</dl>`;
/** A verdict on a line of a list; the levels are those of the study, else the usual ones. */
function verdict(pair, { p, out, q, calibrated }) {
  const { q_level, effect } = pair.entry.chance, level = q_level ?? 0.05, least = effect ?? 0.1;
  if (calibrated > 1) return html`<span class="soft" title="no q is known here">not tested</span>`;
  if (calibrated) {
    return html`<span class="yes" title=${`q below ${level}, and p larger than in the other classes by at least ${least}`}>✓ significant and large</span>`;
  }
  if (q < level && !(p - out >= least + 1 / 255)) { // p and p outside are rounded to bytes
    return html`<span class="soft" title=${`q below ${level}, but p larger than in the other classes by less than ${least}`}>significant but small</span>`;
  }
  return html`<span class="soft">not significant</span>`;
}
const table = (caption, heads, rows) => html`<div class="scroll"><table>${caption && html`<caption>${caption}</caption>`}
  <thead><tr>${heads}</tr></thead><tbody>${rows}</tbody></table></div>`;
const head = (text, kind) => html`<th scope="col" class=${kind}>${text}</th>`;

/** Rows of neurons. c: the class that they are about, or -1 for the first of each. marked: classes to mark, else each's own. */
function neuronRows(pair, list, params, c, marked) {
  return list.map((flat) => {
    const mine = pair.ofNeuron.get(flat) || [], line = lineOf(pair, flat, c);
    return html`<tr>
      <th scope="row" class="number"><a href=${toNeuron(pair, flat, params)}>${name(pair, flat)}</a>
        ${pair.paged.has(flat) && html`<span class="soft" title="has clips">♪</span>`}</th>
      <td class="phone-off">${spark(pair, flat, marked || mine.map((x) => x.c))}</td>
      <td class="n" title=${known(line.c) && `in ${pair.names[line.c]}`}>${percent(line.p)}</td>
      <td class="n phone-off">${percent(line.out)}</td>
      <td class="n phone-off">${Number.isFinite(pair.aape[flat]) ? fixed(pair.aape[flat], 3) : "never active"}</td>
      <td class="n">${small(line.q)}</td>
      <td>${known(line.c) ? verdict(pair, line) : "–"}</td>
      <td class="phone-off soft small">${mine.length ? some(classNames(pair, mine), 3) : "no class"}</td></tr>`;
  });
}
const COLUMNS = [["Neuron", null, "name"], ["p in every class", "phone-off"], ["p", "n", "p"], ["p outside", "n phone-off"],
  ["AAPE", "n phone-off", "aape"], ["q", "n", "q"], ["Against permuted labels"], ["Specific to", "phone-off", "classes"]];
const pOf = (pair, c) => (c < 0 ? "p in its first class" : `p in ${pair.names[c]}`);
const neuronTable = (pair, list, params, c, marked) =>
  table(null, COLUMNS.map(([text, kind]) => head(text === "p" ? pOf(pair, c) : text, kind)), neuronRows(pair, list, params, c, marked));

// -- pages ------------------------------------------------------------------------------------------------------------

const trail = (entry, ...rest) => html`<nav class="trail" aria-label="You are here"><a href="#">Atlas</a> ›
  <a href=${of(entry)}>${entry.title}, ${entry.label}</a>${rest.map((x) => [" › ", x])}</nav>`;
const tested = (entry) => entry.classes.every((c) => known(c[2]));

async function homePage() {
  const title = [html`<h1>What do neurons listen to?</h1>`, html`<p class="soft">Study ${index.study}. ${index.note}</p>`];
  if (!index.pairs.length) return [title, html`<p>Nothing has been built yet.</p>`];
  const trained = index.pairs.filter((e) => e.role !== "untrained"), chosen = trained.length ? trained : index.pairs;
  const models = [...new Set(index.pairs.map((e) => e.m))], tasks = [...new Set(index.pairs.map((e) => e.t))];
  const cell = (e) => {
    if (!e) return html`<td>–</td>`;
    const covered = e.classes.filter((c) => c[2] > 0).length, { auprc } = e.chance;
    return html`<td><a href=${of(e)}>${tested(e) ? `${covered} of ${e.classes.length} classes` : `${e.classes.length} classes, not tested`}</a>
      <span class="soft small line">${known(auprc) ? `mean AUPRC ${fixed(auprc, 2)}` : ""}</span></td>`;
  };
  const rows = tasks.map((t) => html`<tr><th scope="row">${index.pairs.find((e) => e.t === t).title}</th>
    ${models.map((m) => cell(entryOf(m, t)))}</tr>`);
  const heads = [head("Task"), models.map((m) => head(index.pairs.find((e) => e.m === m).label))];
  return [
    title, await firstNeuron(chosen),
    html`<h2>All tasks and models</h2>`,
    html`<p class="soft small">Classes with at least one neuron that is more active in them than permuted labels explain, significantly and by a
      large difference; and how well the class-specific neurons detect their classes on held-out clips (mean AUPRC).</p>`,
    table(null, heads, rows),
    html`<h2>Pick a class</h2>`,
    tasks.map((t) => chosen.find((e) => e.t === t) || index.pairs.find((e) => e.t === t)).map((e) => html`<section>
      <h3>${e.title}<span class="soft small"> in the ${e.label} model</span></h3><div class="chips">
      ${e.classes.slice(0, 60).map(([c, k]) => html`<a href=${of(e, { c })} class=${!k && "none"} title=${`${k} neurons`}>${breakable(c)}</a>`)}
      ${e.classes.length > 60 && html`<a href=${of(e)}>all ${e.classes.length}</a>`}</div></section>`),
  ];
}

/** The neuron that detects its class best on held-out clips, to be heard at once. */
async function firstNeuron(entries) {
  const [entry] = entries.filter((e) => e.best).sort((a, b) => (b.best[3] ?? -1) - (a.best[3] ?? -1));
  if (!entry) return null;
  const pair = await pairOf(entry), [l, n] = entry.best, flat = l * pair.width + n;
  const cards = topCards(pair, await recordOf(pair, flat), { secret: true }).slice(0, 3);
  const reveal = () => cards.forEach((figure) => figure.classList.remove("secret"));
  return cards.length > 0 && html`<section><h2>Start by listening</h2>
    <p class="lead">One neuron of the ${entry.label} model: layer ${l}, number ${n}. It is most active in these clips. What do they share?</p>
    <div class="row">${players("Play the three", () => playAll(cards), "play")}<button onclick=${reveal}>Reveal the classes</button>
      <a class="button" href=${toNeuron(pair, flat)}>Open the neuron's page</a></div>
    <div class="clips wide">${cards}</div></section>`;
}

/** Why permuted labels can select more neurons than the real ones, where they do. */
const whyMore = (classes) => classes.some((c) => c.chance && c.chance[0] > c.neurons) && html`<p class="soft small">Permuted labels often give more
  neurons, because an unselective neuron then passes for many classes at once. What counts is the number that is significant and large.</p>`;

/** Neurons of a class under permuted labels, in words: a range, or their mean where it alone is known. */
const chanceOf = ({ chance: [mean, low, high] }) => (known(low) ? `${count(low)} to ${count(high)}` : `${fixed(mean, 0)} on average`);

async function taskPage(entry) {
  const pair = await pairOf(entry), { chance } = entry;
  const most = Math.max(1, ...pair.classes.map((c) => Math.max(c.neurons, c.chance?.[2] || 0)));
  const beside = (c) => html`<span class="range" title=${c.chance && `permuted labels: ${chanceOf(c)}`}>
    ${known(c.chance?.[1]) && html`<b style=${`left: ${css(c.chance[1] / most)}; width: ${css((c.chance[2] - c.chance[1]) / most)}`}></b>`}
    <i style=${`left: ${css(c.neurons / most)}`}></i></span>`;
  const rows = pair.classes.map((c, i) => html`<tr>
    <th scope="row"><a href=${of(entry, { c: c.name })}>${c.name}</a></th>
    <td class="n phone-off">${count(c.clips)}</td><td class="n">${count(c.calibrated)}</td><td class="n">${count(c.neurons)}</td><td>${beside(c)}</td>
    <td class="phone-off">${pair.ofClass[i].slice(0, 1).map((flat) => html`<a href=${toNeuron(pair, flat, { c: c.name })}>${name(pair, flat)}</a>`)}</td></tr>`);
  const heads = [head("Class"), head("Clips", "n phone-off"), head("Significant and large", "n"), head("Class-specific", "n"), head("Against permuted labels"), head("Strongest", "phone-off")];
  return [
    trail(entry), html`<h1>${entry.title}</h1>`, html`<p class="soft">Neurons of the ${entry.label} model</p>`,
    facts(["Coverage by class-specific neurons", percent(entry.coverage), known(chance.coverage_null_mean) ? `permuted labels: ${percent(chance.coverage_null_mean)}` : "permuted labels: not known here"],
      ["Classes covered", tested(entry) ? `${pair.classes.filter((c) => c.calibrated > 0).length} of ${pair.names.length}` : "not tested", "by neurons that are significant and large"],
      ["Significant and large", count(chance.calibrated_neurons), `of ${count(entry.selected)} neurons kept for their low AAPE, of ${count(pair.size)} in all`],
      ["Mean AAPE", known(chance.mean_aape) ? `${chance.mean_aape} nats` : "–", known(chance.mean_aape) && `permuted labels: ${chance.mean_aape_null_mean}`]),
    html`<p><a class="button" href=${of(entry, { find: 1 })}>Find and sort all its neurons</a></p>`,
    pair.ofNeuron.size === 0 && html`<p>No neuron passes the selection on this task.</p>`,
    html`<h2>Classes</h2>`, whyMore(pair.classes), table("Last columns: class-specific neurons (mark), and the 95 % range under permuted labels (grey).", heads, rows),
  ];
}

function classOf(pair, wanted) {
  const c = pair.names.indexOf(wanted);
  if (c < 0) throw new Error(`${pair.entry.title} has no class “${wanted}”.`);
  return c;
}

async function classPage(entry, params) {
  const pair = await pairOf(entry), c = classOf(pair, params.get("c")), { name, chance, calibrated } = pair.classes[c];
  const list = pair.ofClass[c], paged = list.filter((flat) => pair.paged.has(flat));
  const stage = html`<div class="clips wide"></div>`;
  const listenTo = () => playFound(stage, paged.map((flat) => [pair, flat, null]));
  const others = index.pairs.filter((e) => sameNeurons(e, entry))
    .flatMap((e) => e.classes.filter(([other]) => e !== entry || other !== name).map(([d]) => ({ d, u: e === entry ? null : e.t, title: e.title })));
  const compare = html`<select aria-label="Compare with another class" onchange=${(event) => {
    const { d, u } = others[event.target.value];
    go(of(entry, { c: name, d, u }));
  }}><option value="">Compare with…</option>
    ${others.map(({ d, u, title }, i) => html`<option value=${i}>${u ? `${d} (${title})` : d}</option>`)}</select>`;
  return [
    trail(entry, name), html`<h1>${breakable(name)}</h1>`,
    html`<p class="lead">${list.length ? count(list.length) : "No"} neuron${list.length !== 1 && list.length && "s"} of the ${entry.label} model
      ${list.length > 1 ? "are" : "is"} specific to ${name}.
      ${known(calibrated) && list.length > 0 && `${count(calibrated)} of them pass individually: they are significant and large.`}</p>`,
    html`<p class="soft small">${chance ? `Permuted labels give ${chanceOf(pair.classes[c])} class-specific neurons.` : "How many neurons permuted labels give is not known here."}</p>`,
    whyMore([pair.classes[c]]),
    html`<div class="row">${paged.length > 0 && players("Play what excites them", listenTo, "play")}
      ${compare}<a class="button" href=${of(entry, { find: 1, c: name })}>All ${count(list.length)} in a table</a></div>`,
    stage, list.length > 0 && neuronTable(pair, list.slice(0, 40), { c: name }, c, [c]),
  ];
}

/** Shows and plays the clip that most excites each neuron, no clip twice. wanted: [pair, flat, class or null for any] */
async function playFound(stage, wanted) {
  const cards = [], heard = new Set();
  for (const [pair, flat, c] of wanted) {
    const record = cards.length < 12 && (await recordOf(pair, flat));
    if (!record) continue;
    const place = record.clips.findIndex(([number, role]) => {
      const [sound, , , label] = pair.clips[number];
      return !heard.has(sound) && (c === null ? role === TOP : label === c && role <= 1);
    });
    if (place < 0) continue;
    heard.add(pair.clips[record.clips[place][0]][0]);
    cards.push(card(pair, record, place, { label: `neuron ${name(pair, flat)}` }));
  }
  stage.replaceChildren(...cards);
  playAll(cards);
}

async function findPage(entry, params) {
  const pair = await pairOf(entry), c = params.has("c") ? classOf(pair, params.get("c")) : -1;
  const named = classesNamed(params.get("q") || "", entry);
  const found = search(pair, params), { name: by, falling } = sortOf(pair, params), list = listIn(params);
  const choice = (key, label, options, fallback) => {
    const select = html`<select id=${`find-${key}`} onchange=${(event) => change({ [key]: event.target.value })}>
      ${options.map(([value, text]) => html`<option value=${value}>${text}</option>`)}</select>`;
    select.value = params.get(key) ?? fallback;
    return html`<label>${label} ${select}</label>`;
  };
  const heads = COLUMNS.map(([text, kind, key]) => {
    const title = text === "p" ? pOf(pair, c) : text, desc = key === by ? Number(!falling) : null;
    return key
      ? html`<th scope="col" class=${kind} aria-sort=${key === by && (falling ? "descending" : "ascending")}>
          <button id=${`sort-${key}`} onclick=${() => change({ s: key, desc })}>${title}</button></th>`
      : head(title, kind);
  });
  const rows = (from) => neuronRows(pair, found.slice(from, from + ROWS), list, c, c < 0 ? null : [c]);
  const grid = table(null, heads, rows(0)), body = grid.querySelector("tbody");
  const more = html`<button hidden=${found.length <= ROWS} onclick=${() => {
    body.append(...rows(body.children.length));
    more.hidden = body.children.length >= found.length;
  }}>Show more</button>`;
  return [
    trail(entry, "all neurons"), html`<h1>Find neurons</h1>`,
    named.length > 0 && [html`<h2>Classes</h2>`, html`<div class="chips">${named.slice(0, 40).map(({ entry: e, name: other }) =>
      html`<a href=${of(e, { c: other })}>${breakable(other)}<span class="soft small"> ${e.title}${e.m !== entry.m && `, ${e.label}`}</span></a>`)}</div>`,
      html`<h2>Neurons of ${entry.title}, ${entry.label}</h2>`],
    html`<div class="row">
      ${choice("only", "Show", [["specific", "class-specific"], ["calibrated", "significant and large"], ["all", "all neurons"]], "specific")}
      ${choice("c", "Class", [["", "any"], ...pair.names.map((x) => [x, x])], "")}
      ${choice("layer", "Layer", [["", "any"], ...pair.layers.map((x, l) => [l, `${l} (${x})`])], "")}</div>`,
    html`<div class="row"><span role="status" id="found">${count(found.length)} of ${count(pair.size)} neurons</span>
      <button onclick=${() => copy(asCsv(pair, found, c), "Table")}>Copy as CSV</button>
      <button onclick=${() => copy(asNeurons(pair, found), "int_neurons")} title="as EVAR's configuration lists them">Copy as int_neurons</button>
      <button onclick=${() => copy(location.href, "Address")}>Copy address</button></div>`,
    found.length ? [grid, html`<div class="row">${more}</div>`] : html`<p>No neuron of this task fits. Search for a class, a layer (L3), both (siren L3) or a
      neuron (3/2233); “all neurons” includes those that are specific to no class.</p>`,
  ];
}

function asCsv(pair, found, c) {
  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
  const lines = found.flatMap((flat) => {
    const neuron = `${Math.floor(flat / pair.width)},${flat % pair.width}`, aape = fixed(pair.aape[flat], 5);
    const mine = (pair.ofNeuron.get(flat) || []).filter((x) => c < 0 || x.c === c);
    if (!mine.length) return [`${neuron},,,,${aape},,`];
    return mine.map((x) => [neuron, quoted(pair.names[x.c]), x.p?.toFixed(2), x.out.toFixed(2), aape, // known to a byte
      known(x.q) ? x.q : "", ["False", "True", ""][x.calibrated]].join(","));
  });
  return ["layer,neuron,class,rate,rate_outside,aape,q_value,calibrated", ...lines, ""].join("\n");
}
const asNeurons = (pair, found) => `int_neurons: [${found.map((flat) => `[${name(pair, flat).replace("/", ", ")}]`).join(", ")}]\n`;

async function neuronPage(entry, params) {
  const pair = await pairOf(entry), l = Number(params.get("l")), n = Number(params.get("n")), flat = l * pair.width + n;
  if (!(l in pair.layers && Number.isInteger(n) && n >= 0 && n < pair.width)) {
    throw new Error(`There is no neuron ${params.get("l")}/${params.get("n")}: layers count from 0 to ${pair.layers.length - 1}, neurons to ${pair.width - 1}.`);
  }
  const record = await recordOf(pair, flat), mine = pair.ofNeuron.get(flat) || [], aape = pair.aape[flat];
  const first = mine.find((x) => pair.names[x.c] === params.get("c")) || mine[0];
  const sure = mine.filter((x) => x.calibrated === 1);
  const twin = twinOf(entry);
  const twinRank = html`<span></span>`;
  if (twin) pairOf(twin).then((u) => twinRank.append(`; this AAPE would rank ${rankOf(aape, u)} in the ${twin.label} model`), () => {});
  return [
    html`<div class="trail">${trail(entry, ...listLink(entry, params))}${steps(pair, flat, params)}</div>`,
    html`<h1>Layer ${l}, neuron ${n}</h1>`,
    first
      ? html`<p class="lead">Active at <span class="hot">${percent(first.p)}</span> of the tokens of
          <span class="hot">${breakable(pair.names[first.c])}</span> and at ${percent(first.out)} of those of the other classes. Specific to
          ${mine.length === 1 ? "this class only" : `${mine.length} of ${pair.names.length} classes`}.</p>`
      : html`<p class="lead">Specific to no class here; ${whereActive(pair, flat)}.</p>`,
    record?.flags.map((flag) => html`<p class="flag">⚠ ${FLAGS[flag](record)}</p>`),
    facts(
      ["AAPE", Number.isFinite(aape) ? `${fixed(aape, 3)} nats` : "never active", pair.names.length > 1 && Number.isFinite(aape) && `${percent(aape / Math.log(pair.names.length), 1)} of ln ${pair.names.length}`],
      ["Rank of its AAPE", record ? (record.eligible ? `${count(record.eligible[0])} of ${count(record.eligible[1])}` : "too weak to be ranked") : rankOf(aape, pair),
        [record && `neurons with a strong enough response; ${rankOf(aape, pair)} among all`, twin && twinRank]],
      ["Active at", percent(record?.density, 1), "of all tokens"],
      ...(record?.padding ? [["Active on zero padding", percent(record.padding[0]), `on sound: ${percent(record.padding[1])}`]] : []),
      ["q", small(first?.q), first && `for ${pair.names[first.c]}`],
      ["Against permuted labels", first ? verdict(pair, lineOf(pair, flat, (sure[0] || first).c)) : "–", sure.length > 0 && `for ${some(classNames(pair, sure), 4)}`]),
    record
      ? [html`<h2>Listen</h2>`, listen(pair, record)]
      : html`<p class="soft">No clips were built for this neuron; build_atlas(…, neurons=[[${l}, ${n}]]) adds them.</p>`,
    html`<h2>Share of active tokens in each class</h2>`, await taskTabs(pair, record, flat),
    record && html`<div class="panels">${panels(pair, record, flat)}</div>`,
  ];
}

/** Where a neuron that is specific to no class is active, to the end of a sentence. */
function whereActive(pair, flat) {
  const { c, p } = largest(pair, flat);
  if (!Number.isFinite(pair.aape[flat])) return "it is never active on this task";
  if (p === 0) return "it is active at less than 0.2\u202f% of the tokens of any class"; // p is rounded to bytes
  return ["most active for ", html`<span class="hot">${pair.names[c]}</span>`, `, at ${percent(p, p < 0.01 ? 1 : 0)} of its tokens`];
}

/** Whether two pairs are of one model and the same layers of it; the first atlases know the number of layers alone. */
const sameNeurons = (a, b) => a.m === b.m && a.width === b.width && a.layers === b.layers &&
  String(a.layer_names ?? b.layer_names) === String(b.layer_names ?? a.layer_names);
const twinOf = (entry) => index.pairs.find((e) => e.role === "untrained" && e.t === entry.t && e !== entry);

/** Place of an AAPE among those of a pair, in words: the lowest is 1; one that is never active has none. */
function rankOf(aape, { sorted, size }) {
  if (!Number.isFinite(aape)) return "–";
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < aape) low = middle + 1;
    else high = middle;
  }
  return low < size ? `${count(low + 1)} of ${count(size)}` : `above all ${count(size)}`;
}

/** The list that a neuron's page was opened from: a search, a class, or all neurons with clips. */
function listLink(entry, params) {
  if (params.has("find")) return [html`<a href=${of(entry, listIn(params))}>search</a>`];
  return params.has("c") ? [html`<a href=${of(entry, { c: params.get("c") })}>${params.get("c")}</a>`] : [];
}
function steps(pair, flat, params) {
  const found = params.has("find") ? search(pair, params)
    : params.has("c") ? pair.ofClass[classOf(pair, params.get("c"))] : [...pair.paged].sort((a, b) => a - b);
  const at = found.indexOf(flat), list = listIn(params);
  if (at < 0) return null;
  const step = (to, id, text) => to !== undefined && html`<a class="button" id=${id} href=${toNeuron(pair, to, list)}>${text}</a>`;
  return html`<span class="steps">${step(found[at - 1], "previous", "← previous")}
    <span>${count(at + 1)} of ${count(found.length)}</span>${step(found[at + 1], "next", "next →")}</span>`;
}

/** Bars of p on this task, and tabs for the same neuron on the study's other tasks. */
async function taskTabs(pair, record, flat) {
  const entries = [pair.entry, ...index.pairs.filter((e) => e !== pair.entry && sameNeurons(e, pair.entry))];
  const panel = html`<div role="tabpanel" id="bars"></div>`;
  const show = async (entry) => {
    tabs.forEach((tab, i) => tab.setAttribute("aria-selected", String(entries[i] === entry)));
    const other = await pairOf(entry);
    const links = other !== pair && html`<p class="row"><a href=${toNeuron(other, flat)}>Its page on ${entry.title}</a>
      <a href=${toNeuron(pair, flat, { u: entry.t })}>Both side by side</a></p>`;
    panel.replaceChildren(...shown([links, bars(other, other === pair && record ? recordBars(record) : other.row(flat), flat)]));
  };
  const tabs = entries.map((entry, i) => html`<button role="tab" aria-controls="bars" tabindex=${i ? -1 : 0}
    onclick=${() => show(entry)} onkeydown=${(event) => {
      const to = tabs[i + { ArrowRight: 1, ArrowLeft: -1 }[event.key]];
      if (to) to.focus(), to.click();
    }}>${entry.title}</button>`);
  await show(pair.entry);
  return [tabs.length > 1 && html`<div role="tablist" aria-label="The same neuron on other tasks">${tabs}</div>`, panel];
}
function recordBars({ bars: { c, p, low, high } }) {
  const [lows, highs] = [low, high].map((x) => x && bytes(x));
  return Array.from(bytes(p), (x, i) => ({ c: c ? c[i] : i, p: x / 255, low: lows && lows[i] / 255, high: highs && highs[i] / 255 }));
}

function panels(pair, record, flat) {
  const panel = (title, ...content) => html`<section><h2>${title}</h2>${content}</section>`;
  const mine = pair.ofNeuron.get(flat) || [];
  const place = (set) => set.neurons.findIndex(([l, n]) => l * pair.width + n === flat);
  const sets = pair.effects.filter((set) => place(set) >= 0);
  return [
    record.histogram && record.aape !== null && panel("Share of active tokens, clip by clip", histogram(pair, record)),
    record.profile && panel("When it is active, on average over its clips", timeProfile(pair, record)),
    known(record.groups) && panel("Is it the recording or the speaker?", groupEffect(record)),
    mine.some((x) => x.scores.some(known)) && panel("How well does it detect its classes on held-out clips?", scores(pair, mine)),
    record.attribution && panel("Estimated effect of silencing this neuron alone", attribution(pair, record)),
    sets.map((set) => panel(`Silenced together with others: ${set.target} (${set.mode}), ${set.kind === "zero" ? "set to zero" : "replaced by their mean"}`, effect(set, place(set)))),
    record.near?.length > 0 && panel("Neurons with the same profile over clips", html`<ul>${record.near.map(([l, n, r]) => {
      const other = l * pair.width + n, classes = classNames(pair, pair.ofNeuron.get(other) || []);
      return html`<li><a href=${toNeuron(pair, other)}>${l}/${n}</a><span class="soft"> r = ${r.toFixed(2)}${classes.length > 0 && `, ${some(classes, 3)}`}</span></li>`;
    })}</ul>`),
  ];
}
/** Scores of a neuron on clips held out, beside those of neurons chosen under permuted labels. */
function scores(pair, mine) {
  const row = (title, values, kind) => html`<tr class=${kind}><th scope="row">${title}</th>${values.map((x) => html`<td class="n">${fixed(x, 2)}</td>`)}</tr>`;
  const twin = twinOf(pair.entry), means = ({ chance }, end = "") => SCORES.map(([key]) => chance[key + end]);
  const clips = pair.classes.reduce((sum, c) => sum + c.clips, 0);
  return [
    html`<p class="soft small">Clips of the class are separated from all others by the neuron's share of active tokens; the threshold
      is chosen on other clips. The AUPRC of an uninformative neuron is the class's share of clips.</p>`,
    table(null, [head("Class"), ...SCORES.map(([, title]) => head(title, "n"))], [
      ...mine.slice(0, 8).map((x) => row(`${pair.names[x.c]} (${percent(pair.classes[x.c].clips / clips)} of clips)`, x.scores)),
      row("all class-specific neurons, mean", means(pair.entry), "soft"),
      row("neurons selected under permuted labels, mean", means(pair.entry, "_permuted"), "soft"),
      twin && row(`class-specific neurons of the ${twin.label} model, mean`, means(twin), "soft")]),
    mine.length > 8 && html`<p class="soft small">and ${mine.length - 8} more classes</p>`,
  ];
}
/** First-order effect of silencing one neuron on ln p: its own classes, and those that would change most. */
function attribution(pair, { bars, own, attribution: { zero, mean, rank } }) {
  const [zeros, means] = [zero, mean].map((x) => numbers(x, Float32Array));
  const all = Array.from(zeros, (x, i) => ({ c: bars.c ? bars.c[i] : i, zero: x, mean: means[i] })).filter((x) => known(x.zero));
  const changed = [...all].sort((a, b) => Math.abs(b.zero) - Math.abs(a.zero));
  const listed = [...changed.filter((x) => own.includes(x.c)).slice(0, 5), ...changed.filter((x) => !own.includes(x.c)).slice(0, 3)];
  const milli = (x) => fixed(1000 * x, 2);
  return [
    html`<p class="soft small">First-order change of a classifier's ln p of the class on clips of the class, in thousandths of a
      nat. Below 0, silencing lowers the class. Rank 1 is the neuron, of all ${count(pair.size)}, whose silencing lowers it most.</p>`,
    table(null, [head("Class"), head("Set to zero", "n"), head("Replaced by its mean", "n"), head("Rank", "n")], listed.map((x) => html`<tr>
      <th scope="row" class=${own.includes(x.c) && "hot"}>${pair.names[x.c]}</th><td class="n">${milli(x.zero)}</td>
      <td class="n">${milli(x.mean)}</td><td class="n">${count(rank[own.indexOf(x.c)])}</td></tr>`)),
  ];
}
function groupEffect({ groups, crowd }) {
  const most = crowd.map(([group, clips]) => `${clips} are from ${group}`).join(", ");
  return [
    html`<p>Within a class, ${percent(groups)} of the variance between clips lies between groups (recordings, speakers); for
      random groups it is about 0\u202f%. ${groups > 0.2 && `${groups < 0.5 ? "Part" : "Most"} of its response depends on who or what was recorded.`}</p>`,
    html`<p>Of its 20 most active clips, ${most || "no two are from one group"}.</p>`,
  ];
}
/** When a neuron is active, mean over its clips, relative to the largest value. */
function timeProfile(pair, { profile, position }) {
  return [
    html`<div class="profile" role="img" aria-label="Activation over the time of a clip, mean over its clips">${
      Array.from(bytes(profile), (x) => html`<i style=${`height: ${css(x / 255)}`}></i>`)}</div>`,
    html`<p class="axis"><span>0 s</span><span>${fixed(pair.map_seconds, 1)} s</span></p>`,
    html`<p class="soft small">${percent(position)} of the variance of its time course is the same in every clip.</p>`,
  ];
}
/** What silencing a set did. place: of the neuron in it. */
function effect({ neurons, size, folds, chosen, rows }, place) {
  const cells = rows.map(([c, measure, , difference, mean, low, high, , q]) => {
    const [unit, digits] = measure === "accuracy" ? ["points", 1] : ["nats", 2];
    return html`<tr><th scope="row">${c}</th><td class="n">${fixed(difference, digits)} ${unit}</td>
      <td class="n">${fixed(mean, digits)} (${fixed(low, digits)} to ${fixed(high, digits)})</td><td class="n">${small(q)}</td></tr>`;
  });
  return [
    html`<p class="soft small">${Number((size ?? neurons.length).toFixed(1)).toLocaleString("en")} neurons are silenced together${
      folds && `; they are chosen in every fold, this neuron in ${chosen[place]} of the ${folds} folds that choose any`}. Change: of the class minus that of the other classes. Controls: activity-matched random neurons.</p>`,
    table(null, [head("Class"), head("Change", "n"), head("Controls", "n"), head("q", "n")], cells),
  ];
}

/** One neuron on two tasks. */
async function twoTasksPage(entry, other, params) {
  const column = async (e) => {
    const pair = await pairOf(e), flat = params.get("l") * pair.width + Number(params.get("n"));
    const cards = topCards(pair, await recordOf(pair, flat)), classes = classNames(pair, pair.ofNeuron.get(flat) || []);
    return html`<section><h2><a href=${toNeuron(pair, flat)}>${e.title}</a></h2>
      <p class="soft">Specific to ${classes.length ? some(classes, 6) : "no class"}</p>
      ${cards.length ? [players("Play the most active", () => playAll(cards)), html`<div class="clips">${cards}</div>`] : html`<p class="soft">No clips were built for it here.</p>`}
      <h3>Share of active tokens in each class</h3>${bars(pair, pair.row(flat), flat)}</section>`;
  };
  return [trail(entry), html`<h1>Layer ${params.get("l")}, neuron ${params.get("n")} on two tasks</h1>`,
    html`<div class="pairs">${[await column(entry), await column(other)]}</div>`];
}

/** Two classes, of one task or of two, and the neurons that they share. */
async function sharedPage(entry, other, params) {
  const a = await pairOf(entry), b = await pairOf(other), c = classOf(a, params.get("c")), d = classOf(b, params.get("d"));
  const theirs = new Set(b.ofClass[d]), both = a.ofClass[c].filter((flat) => theirs.has(flat));
  const union = a.ofClass[c].length + theirs.size - both.length, exactly = both.filter((flat) => a.ofNeuron.get(flat).length === 2);
  const [one, two] = [a.names[c], b.names[d]], stage = html`<div class="clips wide"></div>`;
  const wanted = both.flatMap((flat) => [[a, flat, c], [b, flat, d]]).filter(([pair, flat]) => pair.paged.has(flat));
  return [
    trail(entry), html`<h1>${one} and ${two}${a !== b && ` (${other.title})`}</h1>`,
    html`<p class="lead">They share ${count(both.length)} of ${count(union)} neurons (Jaccard index ${fixed(union ? both.length / union : null, 2)})${
      a === b && `; ${count(exactly.length)} ${exactly.length === 1 ? "is" : "are"} specific to exactly these two classes`}.</p>`,
    html`<div class="row">${wanted.length > 0 && players("Play what excites them, class by class", () => playFound(stage, wanted), "play")}
      <a class="button" href=${of(entry, { c: one })}>${one}</a><a class="button" href=${of(other, { c: two })}>${two}</a></div>`,
    stage, both.length > 0 && neuronTable(a, both.slice(0, 200), { c: one }, c, a === b ? [c, d] : [c]),
  ];
}

// -- the frame --------------------------------------------------------------------------------------------------------

function frame(entry) {
  const now = entry || index.pairs[0];
  const pick = (key, label, text) => {
    const options = [...new Map(index.pairs.map((e) => [e[key], e[text]]))];
    const select = html`<select id=${`pick-${key}`} onchange=${(event) => move(key, event.target.value)}>
      ${options.map(([value, title]) => html`<option value=${value}>${title}</option>`)}</select>`;
    select.value = now[key];
    return html`<label>${label} ${select}</label>`;
  };
  const move = (key, value) => { // the same neuron elsewhere; not all models need be there for all tasks
    const kept = key === "m" ? "t" : "m", there = index.pairs.filter((e) => e[key] === value);
    const to = there.find((e) => e[kept] === now[kept]) || there[0];
    go(of(to, { l: here().get("l"), n: here().get("n") }));
  };
  const find = (event) => {
    event.preventDefault();
    const q = document.getElementById("search").value, exact = classesNamed(q, now).filter((x) => folded(x.name) === folded(q));
    if (exact.length) go(of(exact[0].entry, { c: exact[0].name }));
    else go(of(now, { find: 1, q, only: /\d/.test(q) ? "all" : null }));
  };
  document.getElementById("bar").replaceChildren(html`<form role="search" onsubmit=${find}><a class="home" href="#">Atlas of neurons</a>
    ${now && [pick("m", "Model", "label"), pick("t", "Task", "title")]}
    ${now && html`<label class="search"><input type="search" id="search" value=${here().get("q")} placeholder="class, L3 or 3/2233"
      list="classes" aria-label="Find classes and neurons"></label>
      <datalist id="classes">${[...new Set(index.pairs.flatMap((e) => e.classes.map(([c]) => c)))].slice(0, 2000).map((c) => html`<option value=${c}></option>`)}</datalist>`}</form>`);
}

function page(entry, params) {
  if (!entry) return homePage();
  const other = params.has("u") ? entryOf(entry.m, params.get("u")) : entry;
  if (!other) throw new Error(`This atlas has no task “${params.get("u")}” of this model.`);
  if (params.has("n")) return params.has("u") ? twoTasksPage(entry, other, params) : neuronPage(entry, params);
  if (params.has("find")) return findPage(entry, params);
  if (params.has("d")) return sharedPage(entry, other, params);
  return params.has("c") ? classPage(entry, params) : taskPage(entry);
}

let turn = 0, last; // which drawing this is, and the address that was drawn before
async function draw() {
  const mine = ++turn, params = here(), main = document.getElementById("main");
  const entry = params.has("m") ? entryOf(params.get("m"), params.get("t")) : null;
  let content;
  stop();
  frame(entry);
  try {
    if (entry === undefined) throw new Error(`This atlas has no model “${params.get("m")}” on task “${params.get("t")}”.`);
    content = await page(entry, params);
  } catch (error) {
    content = [html`<h1>This page cannot be shown</h1>`, html`<p role="alert">${error.message}</p>`, html`<p><a href="#">To the first page</a></p>`];
  }
  if (mine !== turn) return; // meanwhile another page was asked for
  const focused = document.activeElement?.id;
  main.replaceChildren(...shown(content));
  const heading = main.querySelector("h1");
  document.title = `${heading.textContent} – ${index.study}`;
  if (last?.has("find") && params.has("find") && !params.has("n")) document.getElementById(focused)?.focus();
  else if (last) {
    heading.tabIndex = -1;
    heading.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  last = params;
  main.dataset.ready = mine;
}

const KEYS = { "→ or j": "next neuron in the list", "← or k": "previous neuron", p: "play the most active clips, or stop",
  o: "show or hide where the neuron is active", "/": "search", "?": "these keys" };
function help() {
  const dialog = html`<dialog aria-label="Keys and words" onclose=${(event) => event.target.remove()}><h2>Keys</h2>
    <ul>${Object.entries(KEYS).map(([key, what]) => html`<li><kbd>${key}</kbd> ${what}</li>`)}</ul><h2>Words</h2>
    <p>A neuron is one channel of a block's MLP, after the activation function. It is active at a token if that value is above 0.
      p is the share of a class's tokens at which the neuron is active. AAPE is the entropy of p over the classes; low means selective.
      q is the false-discovery rate of a neuron and a class, from permuted labels. Significant and large: q is below the study's
      level, and p exceeds that of the other classes by at least the study's smallest effect. AUPRC is the area under the curve of precision and
      recall. A group is what clips were cut from, such as a recording or a speaker.</p>
    <form method="dialog"><button class="main">Close</button></form></dialog>`;
  document.body.append(dialog);
  dialog.showModal();
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, dialog, [role=tablist]")) return;
  const press = (id) => document.getElementById(id)?.click();
  const keys = { "?": help, o: () => showMaps(!mapsShown()), p: () => (playing ? stop() : press("play")),
    "/": () => document.getElementById("search")?.focus(),
    ArrowRight: () => press("next"), j: () => press("next"), ArrowLeft: () => press("previous"), k: () => press("previous") };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});

function start(value) {
  index = value;
  if (value.v !== SCHEMA) {
    document.getElementById("main").textContent = `This atlas has format ${value.v}; this page knows ${SCHEMA}.`;
    return;
  }
  if (value.substitute) {
    document.getElementById("bar").before(html`<aside class="banner" aria-label="Note">Synthetic sounds and substitute models: this shows that the
      method runs, not what the paper's models and datasets give.</aside>`);
  }
  document.getElementById("foot").append(html`<span>Everything here lies on your disk.</span>`, html`<button onclick=${help}>Keys and words</button>`);
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });
  addEventListener("hashchange", draw);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (!embedded || !link) return;
    event.preventDefault();
    go(link.getAttribute("href"));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}
