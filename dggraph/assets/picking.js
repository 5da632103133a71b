"use strict";
// Cells of matrices, boxes and curves of diagrams, and buttons, by which images are filtered.
// Edges are called e0-3, blocks n0-2: stage and place.
const picking = (() => {
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function keyOf(target) {
    const cell = target.closest("[data-edge], [data-node], [data-pick]");
    if (cell) { return cell.dataset.edge || cell.dataset.node || cell.dataset.pick; }
    const use = target.closest("use[href^='#e']");
    return use ? use.getAttribute("href").slice(1) : "";
  }

  // Arrow keys move between the cells of a matrix, of which the Tab key reaches one.
  function makeMatrix(svg) {
    const cells = Array.from(svg.querySelectorAll("[data-edge]"));
    if (!cells.length) { return; }
    const side = Number(cells[0].getAttribute("width"));
    const at = (cell) => ["x", "y"].map((name) => Math.round(Number(cell.getAttribute(name)) / side));
    const places = new Map(cells.map((cell) => [at(cell).join(), cell]));
    svg.setAttribute("role", "group");
    cells.forEach((cell, index) => {
      cell.setAttribute("role", "button");
      cell.setAttribute("tabindex", index ? "-1" : "0");
      cell.setAttribute("aria-pressed", "false");
    });
    svg.addEventListener("keydown", (event) => {
      const cell = event.target.closest("[data-edge]"), by = ARROWS[event.key];
      if (!cell || !by) { return; }
      event.preventDefault();
      let [x, y] = at(cell);
      for (let steps = 0; steps < cells.length; steps += 1) {
        x += by[0];
        y += by[1];
        const next = places.get([x, y].join());
        if (next) {
          cell.setAttribute("tabindex", "-1");
          next.setAttribute("tabindex", "0");
          next.focus();
          return;
        }
      }
    });
  }

  // Calls `chosen(key, name)` for what is clicked, or entered on; the same again calls it with "".
  function listen(chosen) {
    let current = "";
    const nameOf = (key) => {
      const cell = document.querySelector(`[data-edge="${key}"]`);
      if (cell) { return cell.dataset.name; }
      const block = document.querySelector(`[data-pick="${key}"]`);
      return block ? block.textContent : key;
    };
    function choose(key) {
      current = key === current ? "" : key;
      document.querySelectorAll("[data-edge][role], [data-pick]").forEach((one) => {
        const own = one.dataset.edge || one.dataset.pick;
        one.setAttribute("aria-pressed", String(own === current));
      });
      chosen(current, current && nameOf(current));
    }
    document.addEventListener("click", (event) => {
      const key = keyOf(event.target);
      if (key) { choose(key); }
    });
    document.addEventListener("keydown", (event) => {
      const cell = event.target.closest("[data-edge]");
      if (cell && (event.key === "Enter" || event.key === " ")) {
        event.preventDefault();
        choose(cell.dataset.edge);
      }
    });
    document.documentElement.classList.add("picks");
    document.querySelectorAll("svg.heat").forEach(makeMatrix);
    document.querySelectorAll("th[data-picks]").forEach((head) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "pick";
      button.dataset.pick = head.dataset.picks;
      button.setAttribute("aria-pressed", "false");
      button.append(...head.childNodes);
      head.append(button);
    });
    return { clear: () => { if (current) { choose(current); } }, nameOf };
  }

  return { listen };
})();
