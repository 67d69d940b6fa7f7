"use strict";

const form = document.querySelector("form");
const shown = document.querySelector("output");
const items = [...document.querySelectorAll("article")].map((article) => ({
  article,
  kinds: article.dataset,
  text: [...article.querySelectorAll(".said")].map((part) => part.textContent).join("\n").toLowerCase(),
}));

// Show the items that fit the form, and say how many.
function filter() {
  const { text, ...kinds } = Object.fromEntries(new FormData(form));
  const wanted = text.toLowerCase();
  let count = 0;
  for (const item of items) {
    const fits =
      item.text.includes(wanted) &&
      Object.entries(kinds).every(([name, value]) => !value || item.kinds[name] === value);
    item.article.hidden = !fits;
    count += fits;
  }
  shown.textContent = `${count} of ${items.length} shown`;
}

// Set the form to the filters of the address.
function read() {
  const filters = new URLSearchParams(location.hash.slice(1));
  for (const field of form.elements) {
    if (field.name) field.value = filters.get(field.name) ?? "";
  }
  filter();
}

form.addEventListener("input", filter);
form.addEventListener("change", () => {
  const set = [...new FormData(form)].filter(([, value]) => value);
  location.hash = new URLSearchParams(set);
});
form.addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", read);
form.hidden = false;
read();
