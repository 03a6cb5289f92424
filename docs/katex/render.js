// Typesets the formulas that pymdownx.arithmatex has marked. KaTeX 0.19.1 lies beside this file, so no network is needed.
document.querySelectorAll(".arithmatex").forEach((element) =>
  katex.render(element.textContent.slice(2, -2), element, { displayMode: element.tagName === "DIV", throwOnError: false }),
);
