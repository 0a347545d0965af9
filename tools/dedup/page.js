"use strict";
// Text of images only ever becomes textContent: no name is read as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const report = data.report;

function make(name, text, attributes) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  return element;
}

function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (bytes >= 999.5 && unit < units.length - 1) { bytes /= 1000; unit++; }
  return Number(bytes.toPrecision(3)) + " " + units[unit];
}

// An image without a name has its id: as many digits as `cowl images` shows.
const named = name => name.replace(/^sha256:([0-9a-f]{12})[0-9a-f]{52}/, "$1");
const percent = (part, whole) => whole ? (100 * part / whole).toFixed(1) + "%" : "-";
const sum = (rows, of) => rows.reduce((total, row) => total + of(row), 0);

// Rows of a table before all are asked for, and letters of a long cell before it is opened.
const ROWS = 20, LETTERS = 80;

// Columns: [head, value, text]; numbers are on the right and sort downwards first.
function table(id, columns, rows, first) {
  const place = document.getElementById(id);
  if (!rows.length) { place.append(make("p", "none")); return; }
  const element = make("table"), head = make("tr"), body = make("tbody");
  let order = rows, limit = ROWS;
  const draw = () => body.replaceChildren(...order.slice(0, limit).map(line));
  const numeric = columns.map(([, value]) => typeof value(rows[0]) === "number");
  const heads = columns.map(([name], column) => {
    const cell = make("th", undefined, numeric[column] ? {class: "n", scope: "col"} : {scope: "col"});
    const button = cell.appendChild(make("button", name, {type: "button"}));
    button.addEventListener("click", () => sort(column));
    return head.appendChild(cell);
  });
  function sort(column) {
    const cell = heads[column];
    const before = cell.getAttribute("aria-sort");
    const down = before ? before === "ascending" : numeric[column];
    for (const other of heads) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = columns[column][1];
    order = rows.slice().sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
    });
    draw();
  }
  function line(row) {
    const element = make("tr");
    columns.forEach(([, value, text, wide], column) => {
      const shown = text ? text(row) : value(row);
      const cell = make("td", undefined, {class: numeric[column] ? "n" : wide ? "wide" : ""});
      const letters = wide ? [...shown] : [];
      if (letters.length > LETTERS) {
        const whole = make("details");
        whole.append(make("summary", letters.slice(0, LETTERS - 1).join("") + "…"), shown);
        cell.append(whole);
      } else cell.textContent = shown;
      element.append(cell);
    });
    return element;
  }
  element.append(make("thead"), body);
  element.firstChild.append(head);
  place.append(element);
  if (first === undefined) draw(); else sort(first);
  if (rows.length > ROWS) {
    const more = make("button", "Show all " + rows.length.toLocaleString("en") + " rows", {type: "button", class: "more"});
    more.addEventListener("click", () => { limit = Infinity; draw(); more.remove(); });
    // Beside the box that scrolls, so that it stays in view.
    place.after(more);
  }
}

const bytes = (name, of) => [name, of, row => size(of(row))];
const count = (number, what) => number.toLocaleString("en") + " " + what + (number === 1 ? "" : "s");

// The tiles.
const logical = sum(report.images, image => image.logical_bytes), wasted = sum(report.images, image => image.waste_bytes);
document.getElementById("what").textContent =
  count(report.images.length, "image") + ", " + count(report.store.objects, "object") + " in the store.";
for (const [name, value] of [
  ["logical: layers of each image, one by one", size(logical)],
  ["kept once for all", size(report.kept.bytes)],
  ["in two images or more", size(report.shared.bytes)],
  ["of that, not in a shared layer", size(report.in_other_layers.bytes)],
  ["waste, of logical", percent(wasted, logical)],
  ["store, on disk", size(report.store.blocks * 512)],
]) {
  const tile = make("div", undefined, {class: "tile"});
  tile.append(make("b", value), make("span", name));
  document.getElementById("tiles").append(tile);
}

// The treemap: rows of rectangles as near to squares as they come (Bruls, Huizing, van Wijk).
const map = document.getElementById("map"), path = document.getElementById("path");
function layout(nodes, x, y, width, height, place) {
  let left = nodes.slice(), total = sum(left, node => node.bytes);
  while (left.length && width > 0 && height > 0 && total > 0) {
    const side = Math.min(width, height), area = width * height / total;
    let row = [], rowBytes = 0, worst = Infinity;
    for (const node of left) {
      const bytes = rowBytes + node.bytes, thick = bytes * area / side;
      const ratios = [...row, node].map(other => {
        const length = other.bytes * area / thick;
        return Math.max(length / thick, thick / length);
      });
      const next = Math.max(...ratios);
      if (row.length && next > worst) break;
      row.push(node); rowBytes = bytes; worst = next;
    }
    const thick = rowBytes * area / side;
    let at = 0;
    for (const node of row) {
      const length = node.bytes * area / thick;
      if (width >= height) place(node, x, y + at, thick, length); else place(node, x + at, y, length, thick);
      at += length;
    }
    if (width >= height) { x += thick; width -= thick; } else { y += thick; height -= thick; }
    left = left.slice(row.length); total -= rowBytes;
  }
}

function colour(node) {
  const share = node.bytes ? node.shared / node.bytes : 0;
  return "color-mix(in oklab, hsl(var(--shared)) " + Math.round(share * 100) + "%, hsl(var(--own)))";
}

// Directories with room enough show what is in them, some levels deep.
function draw(trail, x, y, width, height, levels, cells) {
  const node = trail[trail.length - 1];
  layout(node.children.filter(child => child.bytes > 0), x, y, width, height, (child, x, y, width, height) => {
    const below = [...trail, child], shared = percent(child.shared, child.bytes);
    const name = below.slice(1).map(step => step.name).join("/");
    const button = make("button", undefined, {type: "button", title: name + ": " + size(child.bytes) + ", " + shared + " in several images"});
    const nested = levels > 1 && child.children.length && width > 70 && height > 56;
    Object.assign(button.style, {left: x + "px", top: y + "px", width: width + "px", height: height + "px", background: colour(child)});
    if (width > 34 && height > 18) button.append(make("span", child.name + (nested ? "  " + size(child.bytes) : "")));
    if (!nested && width > 44 && height > 34) button.append(make("span", size(child.bytes)));
    if (child.children.length) {
      button.setAttribute("data-open", "");
      button.addEventListener("click", () => show(below));
    }
    cells.push(button);
    if (nested) draw(below, x + 3, y + 21, width - 6, height - 24, levels - 1, cells);
  });
}

function show(trail) {
  const node = trail[trail.length - 1];
  path.replaceChildren(...trail.map((step, depth) => {
    const button = make("button", depth ? step.name + (depth < trail.length - 1 ? " /" : "") : "/", {type: "button"});
    button.addEventListener("click", () => show(trail.slice(0, depth + 1)));
    return button;
  }), make("span", " " + size(node.bytes)));
  const box = map.getBoundingClientRect(), cells = [];
  draw(trail, 0, 0, box.width, box.height, 3, cells);
  map.replaceChildren(...cells);
  current = trail;
}
let current = [data.treemap];
show(current);
addEventListener("resize", () => show(current));

table("images", [
  ["Image", row => named(row.name), undefined, true], ["Layers", row => row.layers], bytes("Logical", row => row.logical_bytes),
  bytes("Visible", row => row.visible_bytes), bytes("Stored", row => row.stored.bytes), bytes("Exclusive", row => row.exclusive.bytes),
  bytes("Shared", row => row.shared.bytes), bytes("Fair share", row => row.fair_share_bytes),
  ["Waste", row => row.logical_bytes ? row.waste_bytes / row.logical_bytes : 0, row => percent(row.waste_bytes, row.logical_bytes)],
], report.images);

// The heat map.
const MOST = 60;
const names = report.images.slice(0, MOST).map(image => image.name), stored = new Map(report.images.map(image => [image.name, image.stored.bytes]));
if (names.length > 1) {
  const pairs = new Map(report.matrix.map(row => [row.a + "\0" + row.b, row]));
  const element = make("table", undefined, {class: "heat"}), head = make("tr");
  head.append(make("td", ""), ...names.map((name, column) => make("th", String(column + 1), {title: named(name), scope: "col"})));
  element.append(make("thead"), make("tbody"));
  element.firstChild.append(head);
  names.forEach((one, number) => {
    const line = make("tr");
    line.append(make("th", number + 1 + "  " + named(one), {title: named(one), scope: "row"}));
    names.forEach(other => {
      const row = pairs.get(one + "\0" + other) || pairs.get(other + "\0" + one);
      const [value, share] = one === other ? [stored.get(one), 1] : [row ? row.bytes : 0, row ? row.jaccard : 0];
      const cell = make("td", size(value), {title: named(one) + " and " + named(other) + ": " + percent(share, 1)});
      cell.style.background = "rgb(var(--heat) / " + (0.04 + 0.5 * share).toFixed(3) + ")";
      line.append(cell);
    });
    element.lastChild.append(line);
  });
  document.getElementById("matrix").append(element);
  if (report.images.length > MOST) {
    const left = report.images.length - MOST;
    document.getElementById("matrix").after(make("p", "The first " + MOST + " images; " + left + " more are in the JSON's matrix."));
  }
} else document.getElementById("matrix-section").remove();

// The ladder.
const most = Math.max(1, ...report.ladder.map(rung => rung.bytes + rung.index_bytes));
for (const rung of report.ladder) {
  const row = make("div", undefined, {class: "rung"});
  row.append(make("b", rung.unit));
  const errors = report.ladder_errors.find(error => error.unit === rung.unit);
  const bars = [[rung.bytes, "raw", "relative"]];
  if (rung.zstd_bytes !== undefined) bars.push([rung.zstd_bytes, "zstd", "zstd_relative"]);
  for (const [value, kind, error] of bars) {
    const bar = make("div", undefined, {class: "bar"}), parts = make("span");
    for (const [part, colour] of [[value, kind], [rung.index_bytes, "index"]]) {
      const piece = make("i");
      piece.style.width = "calc(min(52vw, 40rem) * " + part / most + ")";
      piece.style.background = "var(--" + colour + ")";
      parts.append(piece);
    }
    const about = errors && errors[error] ? " ± " + (100 * errors[error]).toFixed(1) + "%" : "";
    bar.append(parts, make("span", size(value + rung.index_bytes) + about));
    row.append(bar);
  }
  row.title = rung.chunks.toLocaleString("en") + " chunks, index of " + size(rung.index_bytes);
  document.getElementById("ladder").append(row);
}
if (!report.ladder.some(rung => rung.zstd_bytes !== undefined)) document.getElementById("zstd-key").remove();
if (report.unreadable.length) {
  const lost = report.unreadable.length === 1 ? "1 content" : report.unreadable.length.toLocaleString("en") + " contents";
  const bytes = size(sum(report.unreadable, row => row.bytes));
  document.getElementById("ladder").append(make("p", "Without " + lost + " of " + bytes + ", which cannot be read."));
}
if (!report.ladder.length) document.getElementById("ladder-section").remove();

table("waste", [
  ["Image", row => named(row.image)], ["Cause", row => row.cause], bytes("Size", row => row.bytes), ["Files", row => row.files], ["Layer", row => row.layer],
  ["Largest", row => row.paths[0] || "", row => (row.paths[0] || "") + (row.files > 1 ? " and " + (row.files - 1) + " more" : ""), true], ["Step", row => row.step, undefined, true],
], data.waste, 2);
table("layers", [
  ["Image", row => named(row.image)], ["#", row => row.number], ["Added", row => row.added], ["Changed", row => row.changed],
  ["Deleted", row => row.deleted], bytes("Size", row => row.bytes), bytes("Elsewhere", row => row.elsewhere.bytes), bytes("Waste", row => row.waste_bytes),
  ["Step", row => row.created_by, undefined, true],
], report.layers);
table("duplicates", [
  ["Path", row => row.path, undefined, true], bytes("Size", row => row.size), ["Layers", row => row.layers],
  ["Images", row => row.images], bytes("Missed", row => row.bytes),
], report.duplicates, 4);
table("whatif", [
  ["Image", row => named(row.image)], bytes("Freed", row => row.freed.bytes),
  ["What", row => row.onto ? "on the base of " + named(row.onto) : "removed"],
], [...report.removals, ...report.rebases]);

// Of nothing: a sentence, no empty boxes.
if (!report.images.length) {
  document.querySelectorAll("section, #tiles").forEach(element => element.remove());
  document.getElementById("what").textContent = "There are no images in the store.";
}
