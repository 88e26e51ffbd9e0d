"use strict";
for (const gallery of document.querySelectorAll(".gallery")) {
  const tiles = [...gallery.querySelectorAll(".tiles > .tile")];
  const find = (role) => gallery.querySelector(`[data-role="${role}"]`);
  const findAll = (role) => [...gallery.querySelectorAll(`[data-role="${role}"]`)];
  const big = find("big"), which = find("which"), near = findAll("near"), words = findAll("words");
  let current = 0;

  const place = (element, x, y) => {
    element.style.setProperty("--x", x);
    element.style.setProperty("--y", y);
  };

  const show = (i) => {
    const tile = tiles[i];
    tiles[current].removeAttribute("aria-current");
    tiles[current].tabIndex = -1;
    for (const star of document.querySelectorAll(".star.on")) star.classList.remove("on");
    current = i;
    tile.setAttribute("aria-current", "true");
    tile.tabIndex = 0;
    place(big, tile.style.getPropertyValue("--x"), tile.style.getPropertyValue("--y"));
    which.textContent = `Image ${i}`;
    if (tile.dataset.near) {
      const text = tile.dataset.text.split("|");
      tile.dataset.near.split(" ").forEach((at, k) => {
        place(near[k], ...at.split(","));
        words[k].textContent = text[k];
      });
    }
    for (const star of document.querySelectorAll(`[data-star="${gallery.dataset.gallery}-${i}"]`)) {
      star.classList.add("on");
      star.parentNode.append(star);
    }
  };

  const columns = () => {
    const top = tiles[0].offsetTop;
    const next = tiles.findIndex((tile) => tile.offsetTop > top);
    return next < 0 ? tiles.length : next;
  };

  tiles.forEach((tile, i) => {
    tile.addEventListener("mouseenter", () => show(i));
    tile.addEventListener("focus", () => show(i));
    tile.addEventListener("click", () => show(i));
  });
  gallery.querySelector(".tiles").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() }[event.key];
    const to = event.key === "Home" ? 0 : event.key === "End" ? tiles.length - 1 : by === undefined ? -1 : current + by;
    if (event.key !== "Home" && event.key !== "End" && by === undefined) return;
    event.preventDefault();
    if (to >= 0 && to < tiles.length) tiles[to].focus();
  });
}
