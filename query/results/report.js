// Each image is in the file once; others of the same sample take it from there.
for (const one of document.querySelectorAll("img[data-of]")) one.src = document.getElementById(one.dataset.of).src;

const find = document.getElementById("find");
const size = document.getElementById("size");
const zoomed = document.getElementById("zoomed");

find.addEventListener("input", () => {
  const wanted = find.value.toLowerCase();
  for (const query of document.querySelectorAll(".query")) {
    const own = query.getAttribute("aria-label").toLowerCase().includes(wanted);
    let shown = own;
    for (const card of query.querySelectorAll(".card")) {
      card.hidden = !own && !card.dataset.text.toLowerCase().includes(wanted);
      shown ||= !card.hidden;
    }
    query.hidden = !shown;
    document.querySelector(`#contents a[href="#${query.id}"]`).parentElement.hidden = !shown;
  }
});
size.addEventListener("input", () => document.body.style.setProperty("--size", `${size.value}px`));

function zoom(image) {
  const [large, text] = [zoomed.querySelector("img"), zoomed.querySelector("p")];
  large.src = image.src;
  large.alt = text.textContent = image.alt;
  large.className = image.className;
  zoomed.showModal();
}
for (const image of document.querySelectorAll(".query img")) {
  image.tabIndex = 0;
  image.setAttribute("role", "button");
  image.addEventListener("click", () => zoom(image));
  image.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // or it would press the button that closes
    zoom(image);
  });
}
zoomed.addEventListener("click", () => zoomed.close());
