(() => {
  const find = (id) => document.getElementById(id);
  const cards = Array.from(document.querySelectorAll(".instance"));
  const tools = find("tools"), search = find("search"), group = find("class"), kind = find("kind");
  const pick = find("pick"), previous = find("previous"), next = find("next"), every = find("every"), matches = find("matches");
  const texts = new Map(cards.map((card) => [card, card.querySelector(".head").textContent.toLowerCase()]));
  const used = new Map(cards.map((card) => [card, keysOf(card)]));
  let found = cards, part = "";

  // What the path of an image uses, as its diagrams show it.
  function keysOf(card) {
    const edges = Array.from(card.querySelectorAll(".edges use"), (use) => use.getAttribute("href").slice(1));
    const nodes = Array.from(card.querySelectorAll(".node.live[data-node]"), (node) => node.dataset.node);
    return new Set([...edges, ...nodes]);
  }

  function show(chosen) {
    const place = Math.max(0, found.indexOf(chosen));
    const visible = every.checked ? found : found.slice(place, place + 1);
    cards.forEach((card) => { card.hidden = !visible.includes(card); });
    pick.value = found.length ? found[place].id : "";
    pick.disabled = previous.disabled = next.disabled = every.checked || found.length < 2;
    matches.textContent = every.checked || !found.length
      ? `${found.length} of ${cards.length} images` : `${place + 1} of ${found.length}`;
  }

  function filter(chosen) {
    const wanted = search.value.trim().toLowerCase();
    found = cards.filter((card) => texts.get(card).includes(wanted)
      && (!group || !group.value || card.dataset.class === group.value)
      && (!part || used.get(card).has(part))
      && (!kind.value || card.dataset.kinds.split(" ").includes(kind.value)));
    pick.replaceChildren(...found.map((card) => {
      const option = document.createElement("option");
      option.value = card.id;
      option.textContent = card.dataset.class ? `${card.dataset.name} · ${card.dataset.class}` : card.dataset.name;
      return option;
    }));
    show(chosen);
  }

  function step(by) {
    const place = found.findIndex((card) => card.id === pick.value);
    show(found[(place + by + found.length) % found.length]);
  }

  function follow() {
    const card = cards.find((one) => `#${one.id}` === location.hash);
    if (!card) { return; }
    search.value = kind.value = "";
    picked.clear();
    if (group) { group.value = ""; }
    filter(card);
    card.scrollIntoView();
  }

  const picked = picking.listen((key, name) => {
    const line = find("picked");
    part = key;
    filter(find(pick.value));
    if (!key) { line.replaceChildren(); return; }
    const link = document.createElement("a"), clear = document.createElement("button");
    const number = cards.filter((card) => used.get(card).has(key)).length;
    link.href = "#images";
    link.textContent = `${number} of ${cards.length} images below use ${name}`;
    clear.type = "button";
    clear.id = "clear";
    clear.textContent = "Show all images";
    clear.addEventListener("click", () => { picked.clear(); });
    line.replaceChildren(link, clear);
  });

  search.addEventListener("input", () => filter(find(pick.value)));
  if (group) { group.addEventListener("change", () => filter(find(pick.value))); }
  kind.addEventListener("change", () => filter(find(pick.value)));
  every.addEventListener("change", () => show(find(pick.value)));
  pick.addEventListener("change", () => show(find(pick.value)));
  previous.addEventListener("click", () => step(-1));
  next.addEventListener("click", () => step(1));
  window.addEventListener("hashchange", follow);
  tools.hidden = false;
  filter(cards[0]);
  follow();
})();
