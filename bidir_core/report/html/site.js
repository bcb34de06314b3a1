"use strict";
// The filter of the flips; what it says is in the address after the #.
(() => {
  const box = document.querySelector(".filter");
  if (!box) return;
  const fields = [...box.querySelectorAll("[name]")];
  const rows = [...document.querySelectorAll("[data-flip]")];
  const texts = rows.map((row) => row.textContent.toLowerCase());

  const apply = () => {
    const wanted = Object.fromEntries(fields.map((one) => [one.name, one.type === "checkbox" ? (one.checked ? "1" : "") : one.value]));
    const words = wanted.text.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      const fits = ["model", "flip", "task", "why"].every((name) => !wanted[name] || row.dataset[name] === wanted[name])
        && words.every((word) => texts[i].includes(word));
      row.hidden = !fits;
      shown += fits;
    });
    box.querySelector("output").textContent = `${shown} of ${rows.length} shown`;
    const query = new URLSearchParams(Object.entries(wanted).filter(([, value]) => value));
    history.replaceState(null, "", query.size ? `#${query}` : location.pathname);
  };
  const start = new URLSearchParams(location.hash.slice(1));
  for (const one of fields) {
    if (!start.has(one.name)) continue;
    if (one.type === "checkbox") one.checked = true; else one.value = start.get(one.name);
  }
  box.hidden = false;
  box.addEventListener("input", apply);
  apply();
})();
