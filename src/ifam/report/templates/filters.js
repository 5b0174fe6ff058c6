// Filters and order of the pictures. Without script every picture is shown, flagged ones first.
(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const list = document.getElementById("cases");
  const cases = [...list.children];
  const count = document.getElementById("count");
  const none = document.getElementById("none");
  const apply = () => {
    const want = Object.fromEntries(new FormData(form));
    let shown = 0;
    for (const one of cases) {
      const has = one.dataset;
      const fits =
        ["audit", "label", "group", "right", "flagged"].every((key) => !want[key] || has[key] === want[key]) &&
        Number(has.influence) >= Number(want.influence || 0);
      one.hidden = !fits;
      shown += fits;
    }
    const by = want.order === "influence" ? (a, b) => b.dataset.influence - a.dataset.influence : () => 0;
    list.append(...[...cases].sort((a, b) => by(a, b) || a.dataset.place - b.dataset.place));
    count.textContent = `${shown} of ${cases.length} images`;
    none.hidden = shown > 0;
  };
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
})();
