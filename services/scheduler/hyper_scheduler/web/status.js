// The status page. It only reads, and everything it shows goes in as text, never as markup.
"use strict";

const main = document.getElementById("main");
const live = document.getElementById("live");
const tenantField = document.getElementById("tenant");
const tokenField = document.getElementById("token");
const POLL_MS = 2000;
let timer = 0;
let turn = 0;

tenantField.value = sessionStorage.getItem("tenant") || "default";
tokenField.value = sessionStorage.getItem("token") || "";

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "className") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  for (const child of children) if (child !== null) node.append(child);
  return node;
}

function drawn(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

async function ask(path, parameters) {
  const headers = tokenField.value ? { Authorization: `Bearer ${tokenField.value}` } : {};
  const query = new URLSearchParams(parameters);
  const response = await fetch(`api/${path}?${query}`, { headers });
  const found = await response.json();
  if (!response.ok) throw new Error(found.error || `HTTP ${response.status}`);
  return found;
}

function last(name) { return name.slice(name.lastIndexOf("/") + 1); }
function number(value) { return Number(value || 0); }
function plain(state) { return (state || "").replace(/^(RUN|TASK|WORKER)_STATE_/, ""); }
function stateCell(state, more) {
  const word = plain(state) || "UNKNOWN";
  return make("span", { className: /^[A-Z]+$/.test(word) ? word : "" }, word.toLowerCase() + (more || ""));
}
function lasted(start, end) {
  if (!start) return "";
  const seconds = Math.max(0, (new Date(end || Date.now()) - new Date(start)) / 1000);
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}
function gigabytes(bytes) { return (number(bytes) / 2 ** 30).toFixed(1); }

function bar(counts) {
  const total = Math.max(1, number(counts.total));
  const box = make("span", { className: "bar", "aria-hidden": "true" });
  for (const [name, count] of [["done", counts.succeeded], ["busy", counts.running], ["bad", counts.failed]]) {
    const part = make("span", { className: name });
    part.style.width = `${(100 * number(count)) / total}%`;
    box.append(part);
  }
  const failed = number(counts.failed) ? `, ${counts.failed} failed` : "";
  const lost = number(counts.lost) ? `, ${counts.lost} lost and run again` : "";
  return make("span", {}, box, `${number(counts.succeeded)}/${number(counts.total)}${failed}${lost}`);
}

function table(caption, heads, rows) {
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map((row) => make("tr", row.key ? { "data-key": row.key } : {},
    ...row.map((cell) => make("td", {}, cell))));
  return make("div", { className: "scroll" },
    make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body)));
}

// A row that is told apart from others, so that it stays itself when rows come before it.
function row(key, cells) { return Object.assign(cells, { key }); }

function link(target, text) {
  return make("a", { href: `#${new URLSearchParams(target)}` }, text);
}

function usd(value) {
  const sum = number(value);
  return sum === 0 ? "0" : sum < 0.01 ? sum.toPrecision(2) : sum.toFixed(2);
}

function spent(cost) {
  if (!cost) return "";
  return cost.budget_usd === undefined ? usd(cost.usd) : `${usd(cost.usd)} of ${usd(cost.budget_usd)}`;
}

async function overview(target) {
  const page = target.get("page") || "";
  const limit = target.get("limit") || "";
  const found = await ask("overview", { tenant: tenantField.value, page, limit });
  const costs = new Map((found.cost.workflows || []).map((each) => [each.name, each]));
  const machines = (found.cost.machines || []).map((each) => row(each.machine, [
    each.machine || "", each.offer || "", each.spot ? "spot" : "on demand", usd(each.usd_h),
    link({ workflow: each.workflow }, last(each.workflow || "")), each.ending ? "ending" : "runs",
  ]));
  const workflows = (found.workflows || []).map((each) => row(each.name, [
    link({ workflow: each.name }, last(each.name)),
    each.display_name || "",
    stateCell(each.state, each.paused ? " (paused)" : ""),
    bar(each.tasks || {}),
    lasted(each.create_time, each.end_time),
    ...(costs.size ? [spent(costs.get(each.name))] : []),
    each.message || each.waiting || "",
  ]));
  const heads = ["Workflow", "Recipe", "State", "Tasks", "Time", ...(costs.size ? ["Spent, USD"] : []), "Message"];
  const workers = (found.workers || []).map((each) => {
    const use = each.usage || {};
    const gpus = (use.gpus || []).map((gpu) => `${gpu.index || 0}: ${Math.round(100 * number(gpu.utilization))}%`);
    return row(each.name, [
      last(each.name), stateCell(each.state), `${number(each.running)}/${number(each.slots)}`,
      use.cpus_total ? `${number(use.cpus).toFixed(1)}/${use.cpus_total}` : "",
      use.memory_total_bytes ? `${gigabytes(use.memory_bytes)}/${gigabytes(use.memory_total_bytes)}` : "",
      gpus.join(" "),
      Object.entries(each.labels || {}).map(([key, value]) => `${key}=${value}`).join(" "),
    ]);
  });
  const services = (found.services || []).map((each) => [each.service, each.instance || "", each.address || ""]);
  return [
    make("h2", {}, "Workflows"),
    workflows.length
      ? table(`of tenant ${tenantField.value}, newest first`, heads, workflows)
      : make("p", { className: "soft" }, page ? "No older workflows." : "No workflows yet; start one with `hyper submit RECIPE`."),
    page || found.next_page_token
      ? make("p", {}, page ? link(limit ? { limit } : {}, "Newest") : "", page && found.next_page_token ? " " : "",
        found.next_page_token ? link({ ...(limit ? { limit } : {}), page: found.next_page_token }, "Older") : "")
      : null,
    machines.length ? make("h2", {}, "Machines that are paid for now") : null,
    machines.length ? table("launched by Hyper", ["Machine", "Offer", "Sort", "USD an hour", "For", "State"], machines) : null,
    make("h2", {}, "Workers"),
    table(`${workers.length} machines`, ["Worker", "State", "Busy", "CPUs", "Memory, GiB", "GPUs", "Labels"], workers),
    make("h2", {}, "Services"),
    table("replicas that are alive", ["Service", "Instance", "Address"], services),
  ];
}

// Layers from left to right: an experiment stands right of all that it depends on.
function graph(workflow) {
  const experiments = workflow.experiments || [];
  const layer = new Map();
  for (const each of experiments) {
    layer.set(last(each.name), Math.max(0, ...(each.depends_on || []).map((name) => (layer.get(name) ?? -1) + 1)));
  }
  const rows = [];
  const place = new Map();
  for (const each of experiments) {
    const column = layer.get(last(each.name));
    rows[column] = (rows[column] || 0) + 1;
    place.set(last(each.name), [10 + column * 190, 10 + (rows[column] - 1) * 54]);
  }
  const width = 20 + Math.max(1, rows.length) * 190;
  const height = 20 + Math.max(1, ...rows.map((count) => count || 0)) * 54;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width, role: "img" });
  svg.append(drawn("title", {}, `Experiments and what they depend on: ${experiments.length}`));
  for (const each of experiments) {
    const [x, y] = place.get(last(each.name));
    for (const name of each.depends_on || []) {
      const from = place.get(name);
      if (!from) continue;
      const [a, b] = [from[0] + 150, from[1] + 20];
      svg.append(drawn("path", { d: `M${a} ${b} C${a + 20} ${b} ${x - 20} ${y + 20} ${x} ${y + 20}` }));
    }
  }
  for (const each of experiments) {
    const name = last(each.name);
    const [x, y] = place.get(name);
    const counts = each.tasks || {};
    const word = plain(each.state);
    svg.append(drawn("g", { class: /^[A-Z]+$/.test(word) ? word : "" },
      drawn("rect", { x, y, width: 150, height: 40, rx: 4 }),
      drawn("text", { x: x + 8, y: y + 17 }, name.length > 20 ? `${name.slice(0, 19)}…` : name),
      drawn("text", { x: x + 8, y: y + 32 }, `${word.toLowerCase()} ${number(counts.succeeded)}/${number(counts.total)}`)));
  }
  return make("div", { className: "scroll" }, svg);
}

// What a workflow has cost, beside what the same hours cost on demand.
function costOf(cost) {
  if (!cost) return [];
  const offers = (cost.offers || []).map((each) => row(each.offer, [
    each.offer || "", usd(each.usd), number(each.machine_h).toPrecision(3), usd(each.on_demand_usd),
    usd(each.rework_usd), usd(each.idle_usd), usd(each.egress_usd), number(each.launches), number(each.preemptions),
  ]));
  const budget = cost.budget_usd === undefined ? "" : ` of a budget of ${usd(cost.budget_usd)} USD`;
  return [
    make("h2", {}, "Cost"),
    make("p", {}, `${usd(cost.usd)} USD spent${budget}; on demand it would have been ${usd(cost.on_demand_usd)} USD. `,
      cost.message || ""),
    table("by offer, USD", ["Offer", "Spent", "Machine hours", "On demand", "Rework", "Idle", "Egress", "Launched", "Taken away"], offers),
  ];
}

async function oneWorkflow(target) {
  const found = await ask("workflow", { name: target.get("workflow") });
  const rows = (found.experiments || []).map((each) => row(each.name, [
    link({ workflow: found.name, experiment: each.name }, last(each.name)),
    stateCell(each.state), bar(each.tasks || {}), lasted(each.start_time, each.end_time),
    (each.depends_on || []).join(", "), each.message || "",
  ]));
  return [
    make("h2", {}, `${last(found.name)} (${found.display_name || ""})`),
    make("p", {}, stateCell(found.state, found.paused ? " (paused)" : ""), ` after ${lasted(found.create_time, found.end_time)}. `,
      found.message || "", found.waiting ? ` Waiting: ${found.waiting}` : ""),
    graph(found),
    table("experiments", ["Experiment", "State", "Tasks", "Time", "Depends on", "Message"], rows),
    ...costOf(found.cost),
    make("details", {}, make("summary", {}, "Recipe"), make("pre", {}, found.recipe_yaml || "")),
  ];
}

async function tasks(target) {
  const parent = target.get("experiment");
  const state = target.get("state") || "";
  const found = await ask("tasks", { parent, state, page: target.get("page") || "" });
  const base = { workflow: target.get("workflow"), experiment: parent };
  const rows = (found.tasks || []).map((each) => row(each.name, [
    link({ ...base, task: each.name }, String(number(each.index))),
    stateCell(each.state, each.stopped_early ? " (stopped early)" : ""),
    last(each.worker || ""), number(each.failures), number(each.losses),
    lasted(each.start_time, each.end_time),
    each.objective === undefined ? "" : Number(each.objective).toPrecision(5),
    each.parameters_json || "", each.message || "",
  ]));
  const filter = make("select", { "aria-label": "state of tasks",
    onchange: (event) => { location.hash = new URLSearchParams({ ...base, state: event.target.value }); } },
  ...["", "running", "pending", "succeeded", "failed", "cancelled"].map((word) => {
    const option = make("option", { value: word }, word || "all");
    if (word === state) option.setAttribute("selected", "");
    return option;
  }));
  return [
    make("p", {}, link({ workflow: base.workflow }, last(base.workflow || ""))),
    make("h2", {}, `Tasks of ${last(parent)}`),
    make("p", {}, "Show ", filter),
    table("", ["Task", "State", "Worker", "Failures", "Losses", "Time", "Objective", "Parameters", "Message"], rows),
    found.next_page_token
      ? make("p", {}, link({ ...base, state, page: found.next_page_token }, "More"))
      : null,
  ];
}

async function oneTask(target) {
  const name = target.get("task");
  const [found, log] = await Promise.all([ask("task", { name }), ask("log", { task: name })]);
  const base = { workflow: target.get("workflow"), experiment: target.get("experiment") };
  const output = make("pre", { tabindex: "0", "aria-label": "output" }, log.text || "(nothing yet)");
  return [
    make("p", {}, link({ workflow: base.workflow }, last(base.workflow || "")), " / ",
      link(base, last(base.experiment || ""))),
    make("h2", {}, `Task ${number(found.index)}`),
    make("p", {}, stateCell(found.state), ` on ${last(found.worker || "nothing yet")}, ${lasted(found.start_time, found.end_time)}. `, found.message || ""),
    make("h2", {}, "Parameters"), make("pre", {}, found.parameters_json || "{}"),
    make("h2", {}, "Result"), make("pre", {}, found.result_json || "(none)"),
    make("h2", {}, log.cut ? "Output (its end)" : "Output"), output,
  ];
}

// Makes `old` what `next` is, changing only what differs, so that focus, selected text, scroll
// positions and opened details stay as the reader has them.
function renew(old, next) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data === next.data) return;
    if (next.data.startsWith(old.data)) old.appendData(next.data.slice(old.length));
    else if (!selected(old)) old.data = next.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!next.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of [...next.attributes]) {
    if (name === "style") continue; // the page's policy forbids it as an attribute
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (old.style.cssText !== next.style.cssText) old.style.cssText = next.style.cssText;
  if (old.localName === "select" && old.value !== next.value) old.value = next.value;
  const bottom = old.localName === "pre" && old.scrollTop + old.clientHeight >= old.scrollHeight - 4;
  renewChildren(old, [...next.childNodes]);
  if (bottom) old.scrollTop = old.scrollHeight;
}

function renewChildren(old, wanted) {
  const keys = new Set(wanted.map(keyOf).filter((key) => key));
  const kept = new Map();
  for (const child of [...old.childNodes]) {
    const key = keyOf(child);
    if (key && !keys.has(key)) child.remove();
    else if (key) kept.set(key, child);
  }
  let place = old.firstChild;
  for (const next of wanted) {
    const key = keyOf(next);
    const same = key ? kept.get(key) : place && !keyOf(place) && alike(place, next) ? place : null;
    if (same) renew(same, next);
    if (same && same === place) place = place.nextSibling;
    else old.insertBefore(same || next, place);
  }
  while (place) {
    const after = place.nextSibling;
    place.remove();
    place = after;
  }
}

function keyOf(node) { return node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") : null; }
function alike(a, b) { return a.nodeType === b.nodeType && a.nodeName === b.nodeName; }
function selected(node) {
  const selection = document.getSelection();
  return !selection.isCollapsed && selection.containsNode(node, true);
}

let place = "";
async function show() {
  clearTimeout(timer);
  const mine = ++turn;
  const target = new URLSearchParams(location.hash.slice(1));
  const view = target.has("task") ? oneTask : target.has("experiment") ? tasks
    : target.has("workflow") ? oneWorkflow : overview;
  try {
    const nodes = (await view(target)).filter((node) => node !== null);
    if (mine !== turn) return;
    const first = main.firstChild === null;
    renewChildren(main, nodes);
    const log = main.querySelector("pre[tabindex]");
    if (first && log) log.scrollTop = log.scrollHeight;
    say("live", false);
  } catch (error) {
    if (mine !== turn) return;
    say(error.message, true);
  }
  if (!document.hidden) timer = setTimeout(show, POLL_MS);
}

// What is looked at; another state or page of the same thing is not another place.
function placeNow() {
  const target = new URLSearchParams(location.hash.slice(1));
  return JSON.stringify(["workflow", "experiment", "task"].map((name) => target.get(name)));
}

function say(text, bad) {
  if (live.textContent !== text) live.textContent = text;
  live.className = bad ? "bad" : "";
}

document.getElementById("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("tenant", tenantField.value);
  sessionStorage.setItem("token", tokenField.value);
  show();
});
window.addEventListener("hashchange", () => {
  const before = place;
  place = placeNow();
  if (place !== before) {
    main.replaceChildren();
    main.focus();
  }
  show();
});
place = placeNow();
document.addEventListener("visibilitychange", () => { if (!document.hidden) show(); });
show();
