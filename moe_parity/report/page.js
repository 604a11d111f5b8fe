"use strict";
// A label that follows the pointer over points of the figure; without this script the browser's own
// tooltip shows the same text.
const label = document.createElement("div");
label.className = "tip";
label.hidden = true;
document.body.append(label);
for (const point of document.querySelectorAll("[data-tip]")) {
  const title = point.querySelector("title");
  const show = (x, y) => {
    title?.remove();
    label.textContent = point.dataset.tip;
    label.hidden = false;
    const right = document.documentElement.clientWidth - label.offsetWidth - 8;
    label.style.left = `${window.scrollX + Math.max(8, Math.min(x + 14, right))}px`;
    label.style.top = `${window.scrollY + y + 16}px`;
  };
  point.addEventListener("pointermove", (event) => show(event.clientX, event.clientY));
  point.addEventListener("focus", () => {
    const box = point.getBoundingClientRect();
    show(box.right, box.bottom);
  });
  for (const end of ["pointerleave", "blur"]) point.addEventListener(end, () => (label.hidden = true));
}
