// Filters and order of the studies, by what their articles carry as data. Nothing is fetched.
"use strict";
(() => {
  const form = document.querySelector("form.filters");
  const gallery = document.getElementById("gallery");
  const studies = [...gallery.children];
  const has = (list, word) => !word || list.split(" ").includes(word);

  function shown(study, by) {
    const data = study.dataset;
    return has(data.group, by.group) && has(data.kind, by.kind) && has(data.findings, by.finding)
      && has(data.marks, by.marks) && data.words.includes(by.search.trim().toLowerCase());
  }

  // "-gain": the greatest gain first; studies without the number come last.
  function order(by) {
    if (!by) return studies;
    const sign = by.startsWith("-") ? -1 : 1;
    const key = by.replace("-", "");
    if (key === "id") return [...studies].sort((a, b) => a.dataset.id.localeCompare(b.dataset.id, "en", {numeric: true}));
    const value = (study) => study.dataset[key] === "" ? Infinity : sign * Number(study.dataset[key]);
    return [...studies].sort((a, b) => value(a) - value(b) || 0);
  }

  function update() {
    const by = Object.fromEntries(new FormData(form));
    gallery.append(...order(by.sort));
    let count = 0;
    for (const study of studies) {
      study.hidden = !shown(study, by);
      count += study.hidden ? 0 : 1;
    }
    form.elements.count.value = `${count} of ${studies.length} studies`;
  }

  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
})();
