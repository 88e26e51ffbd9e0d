// Render the formulas that arithmatex marked, with the copy of KaTeX beside this file.
document.querySelectorAll(".arithmatex").forEach((element) => renderMathInElement(element, {
  delimiters: [
    { left: "\\(", right: "\\)", display: false },
    { left: "\\[", right: "\\]", display: true },
  ],
}));
