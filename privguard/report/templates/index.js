"use strict";
const table = document.querySelector(".runs table"), body = table.tBodies[0];
const heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
const by = id => document.getElementById(id);
const names = heads.map(head => head.textContent);
const value = cell => cell.dataset.value === undefined ? cell.innerText : cell.dataset.value === "" ? Infinity : +cell.dataset.value;
const compare = (a, b) => typeof a === "number" ? a - b : a.localeCompare(b);

function sort(column) {
  const up = heads[column].getAttribute("aria-sort") !== "ascending";
  heads.forEach(head => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
  const keys = new Map(rows.map(row => [row, value(row.cells[column])]));
  rows.sort((a, b) => (up ? 1 : -1) * (compare(keys.get(a), keys.get(b)) || 0));
  body.append(...rows);
}

function filter() {
  const words = by("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !(words.every(word => text.includes(word)) && (!by("set").value || row.dataset.set === by("set").value)
      && (!by("team").value || row.dataset.team === by("team").value) && (!by("look").checked || row.dataset.look));
  }
  by("shown").textContent = `${shown().length} of ${rows.length} runs`;
}

const shown = () => rows.filter(row => !row.hidden);
const cells = row => [...row.cells].map(cell => cell.dataset.value || cell.textContent.trim());
// A spreadsheet would run a cell that begins like a formula.
const quoted = text => `"${text.replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

const csv = () => [names, ...shown().map(cells)].map(line => line.map(quoted).join(",")).join("\r\n") + "\r\n";
const json = () => JSON.stringify(shown().map(row => Object.fromEntries(cells(row).map((cell, i) => [names[i], cell]))), null, 2);

heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = head.textContent;
  button.addEventListener("click", () => sort(column));
  head.replaceChildren(button);
});
for (const id of ["find", "set", "team", "look"]) by(id).addEventListener("input", filter);
by("csv").addEventListener("click", () => save("runs.csv", "text/csv", csv()));
by("json").addEventListener("click", () => save("runs.json", "application/json", json()));
document.querySelector(".controls").hidden = false;
filter();
