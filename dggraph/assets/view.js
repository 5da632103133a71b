(() => {
  const find = (id) => document.getElementById(id);
  const gallery = find("gallery"), slider = find("threshold"), other = find("other");
  const images = new Map();
  let chosen = null, wanted = "", turn = 0, asked = null;

  const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
  const isOwn = () => slider.value === slider.dataset.own && !slider.dataset.moved;
  const query = () => (isOwn() ? "" : `?step=${slider.value}`);

  function complain(text) {
    find("problem").textContent = text;
    find("problem").hidden = !text;
  }

  async function ask(address, options) {
    let answer;
    try {
      answer = await fetch(address, options);
    } catch (error) {
      if (error.name === "AbortError") { throw error; }
      throw new Error("The server does not answer. Is `dggraph view` still running?");
    }
    if (answer.ok) { return answer; }
    const facts = await answer.json().catch(() => ({}));
    throw new Error(facts.error || `The server answered ${answer.status}.`);
  }

  // Images of a few pixels are shown with large pixels, not blurred.
  function sharpen(picture) {
    picture.addEventListener("load", () => {
      picture.classList.toggle("pixels", Math.max(picture.naturalWidth, picture.naturalHeight) <= 64);
    });
  }

  function addImage(facts) {
    const item = document.createElement("li"), button = document.createElement("button");
    const picture = document.createElement("img"), name = document.createElement("bdi");
    const ratio = document.createElement("span"), best = document.createElement("small");
    button.type = "button";
    picture.src = `images/${facts.number}/thumbnail`;
    picture.alt = "";
    picture.loading = "lazy";
    sharpen(picture);
    name.textContent = facts.name.split("/").pop();
    button.title = facts.name;
    button.append(picture, name, ratio, best);
    button.addEventListener("click", () => choose(facts.number));
    item.append(button);
    gallery.append(item);
    const option = document.createElement("option");
    option.value = facts.number;
    option.textContent = facts.name;
    other.append(option);
    images.set(facts.number, { ...facts, item, button, ratio, best, option, path: null });
  }

  function removeImage(number) {
    const image = images.get(number);
    if (!image) { return; }
    image.item.remove();
    image.option.remove();
    images.delete(number);
  }

  function choose(number) {
    chosen = number;
    images.forEach((one) => one.button.setAttribute("aria-pressed", String(one.number === number)));
    find("look").hidden = find("use").hidden = chosen === null;
    update();
  }

  // Runs what is looked at first, then all others; a later call ends an earlier one.
  async function update() {
    const mine = turn += 1;
    if (asked) { asked.abort(); }
    asked = new AbortController();
    const { signal } = asked;
    find("at").textContent = isOwn() && !slider.dataset.uniform
      ? "the network's own, by stage" : (slider.value / 100).toFixed(2);
    find("own").disabled = isOwn();
    images.forEach((one) => {
      if (one.at !== query()) { one.path = null; }
      one.at = query();
    });
    if (chosen === null) { return; }
    try {
      await look(signal);
      if (mine !== turn) { return; }
      complain("");
      const todo = Array.from(images.values()).filter((one) => !one.path);
      let count = 0;
      for (const one of todo) {
        await run(one, signal);
        if (mine !== turn) { return; }
        if ((count += 1) % 8 === 0) { summarise(); }
      }
      summarise();
    } catch (error) {
      if (mine === turn && error.name !== "AbortError") { complain(error.message); }
    }
  }

  async function run(image, signal) {
    if (image.path || image.problem) { return; }
    try {
      const answer = await ask(`images/${image.number}/path${query()}`, { signal });
      const facts = await answer.json();
      image.path = { ratio: facts.ratio, keys: new Set([...facts.edges, ...facts.nodes]), edges: facts.edges.length };
      image.ratio.textContent = percent(facts.ratio);
      image.best.textContent = facts.best;
    } catch (error) {
      if (error.name === "AbortError") { throw error; }
      image.problem = error.message;
      image.ratio.textContent = "cannot be read";
      image.button.title = error.message;
      image.button.classList.add("broken");
    }
    filter();
  }

  async function look(signal) {
    const shown = [chosen, other.value === "" ? null : Number(other.value)]
      .filter((number, place, all) => number !== null && images.has(number) && all.indexOf(number) === place);
    for (const number of shown) { await run(images.get(number), signal); }
    const parts = [];
    for (const number of shown) {
      const image = images.get(number);
      if (image.problem) { throw new Error(image.problem); }
      parts.push(await (await ask(`images/${number}/card${query()}`, { signal })).text());
    }
    const difference = shown.length < 2 ? ""
      : await (await ask(`difference/${shown.join("/")}${query()}`, { signal })).text();
    // what the server writes is escaped there, and the page's policy lets nothing in it run
    find("cards").innerHTML = parts.join("");
    find("cards").querySelectorAll("img").forEach(sharpen);
    find("cards").classList.toggle("two", shown.length > 1);
    find("difference").innerHTML = difference;
    find("told").textContent = shown.map((number) => {
      const { path, name } = images.get(number);
      return `${name}: ${percent(path.ratio)} of the static MACs, ${path.edges} edges active`;
    }).join("; ");
    mark();
  }

  function filter() {
    let matches = 0, known = 0;
    images.forEach((one) => {
      const uses = !wanted || Boolean(one.path && one.path.keys.has(wanted));
      one.item.hidden = !uses;
      matches += uses;
      known += Boolean(one.path);
    });
    return { matches, known };
  }

  function mark() {
    document.querySelectorAll("#look [data-node]").forEach((box) => {
      box.classList.toggle("picked", box.dataset.node === wanted);
    });
    document.querySelectorAll("#look use[href^='#e']").forEach((use) => {
      use.classList.toggle("picked", use.getAttribute("href").slice(1) === wanted);
    });
  }

  // The share of photos that use each edge and each block.
  function summarise() {
    const paths = Array.from(images.values()).map((one) => one.path).filter(Boolean);
    const share = (key) => paths.filter((path) => path.keys.has(key)).length / Math.max(1, paths.length);
    find("ran").textContent = `${paths.length} of ${images.size} photos have run.`;
    const edges = [];
    document.querySelectorAll(".maps svg").forEach((svg) => {
      const numbers = svg.querySelectorAll(".number");
      svg.querySelectorAll("[data-edge]").forEach((cell, place) => {
        const part = share(cell.dataset.edge), title = cell.querySelector("title");
        cell.setAttribute("fill-opacity", part.toFixed(3));
        title.textContent = title.textContent.replace(/open for .*? of/, `open for ${percent(part)} of`);
        if (numbers.length) {
          numbers[place].textContent = Math.round(100 * part);
          numbers[place].setAttribute("class", `number ${part > 0.55 ? "strong" : "weak"}`);
        }
        edges.push([part, cell.dataset.edge]);
      });
    });
    document.querySelectorAll("[data-pick^='n']").forEach((button) => {
      bar(button.closest("tr"), share(button.dataset.pick));
    });
    edges.sort((one, two) => two[0] - one[0]);
    const template = document.querySelector("#use .share");
    find("edges").replaceChildren(...edges.slice(0, Number(find("most").value)).map(([part, key]) => {
      const row = document.createElement("tr"), head = document.createElement("th");
      const button = document.createElement("button"), cell = document.createElement("td");
      head.scope = "row";
      button.type = "button";
      button.className = "pick";
      button.dataset.pick = key;
      button.setAttribute("aria-pressed", String(key === wanted));
      button.textContent = picked.nameOf(key);
      head.append(button);
      cell.append(template.cloneNode(true));
      row.append(head, cell, document.createElement("td"));
      bar(row, part);
      return row;
    }));
  }

  function bar(row, part) {
    row.querySelector(".share .bar").setAttribute("width", (100 * part).toFixed(1));
    row.querySelector(".share").setAttribute("aria-label", percent(part));
    row.lastElementChild.textContent = percent(part);
  }

  async function drop(files) {
    const fresh = [];
    complain("");
    find("drop").classList.add("busy");
    for (const file of files) {
      try {
        const options = { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } };
        const answer = await ask(`images?name=${encodeURIComponent(file.name.slice(-200))}`, options);
        const facts = await answer.json();
        facts.gone.forEach(removeImage);
        if (facts.gone.length) { complain("The oldest dropped photos have made room for these."); }
        addImage(facts.image);
        fresh.push(facts.image.number);
      } catch (error) {
        complain(error.message);
        break;
      }
    }
    find("drop").classList.remove("busy");
    find("file").value = "";
    if (!fresh.length) { return; }
    other.value = fresh.length > 1 ? fresh[1] : "";
    const problem = find("problem").textContent;
    picked.clear();
    choose(fresh[0]);
    complain(problem);
  }

  const picked = picking.listen((key, name) => {
    wanted = key;
    const { matches, known } = filter();
    find("filter").hidden = !key;
    find("filter-text").textContent = key ? `${matches} of ${known} photos use ${name}.` : "All photos are shown.";
    mark();
  });
  find("clear").addEventListener("click", () => {
    picked.clear();
    const first = gallery.querySelector("button");
    if (first) { first.focus(); }
  });

  let timer = 0;
  slider.addEventListener("input", () => {
    slider.dataset.moved = "1";
    if (slider.value === slider.dataset.own && slider.dataset.uniform) { delete slider.dataset.moved; }
    find("at").textContent = (slider.value / 100).toFixed(2);
    clearTimeout(timer);
    timer = setTimeout(update, 120);
  });
  find("own").addEventListener("click", () => {
    slider.value = slider.dataset.own;
    delete slider.dataset.moved;
    update();
  });
  other.addEventListener("change", update);
  find("most").addEventListener("change", summarise);
  find("file").addEventListener("change", () => drop(Array.from(find("file").files)));
  // a photo that misses the frame must not replace the page
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      find("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) { drop(Array.from(event.dataTransfer.files)); }
    });
  }

  ask("images").then((answer) => answer.json()).then((all) => {
    all.forEach(addImage);
    if (all.length) { choose(all[0].number); } else { update(); }
  }).catch((error) => complain(error.message));
})();
