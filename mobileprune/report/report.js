// Draws the figures in the page's theme and lets the budget slider tell its numbers. No library but plotly, no network.
(() => {
  "use strict";
  const own = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const plots = [...document.querySelectorAll(".plot")];
  const fine = matchMedia("(pointer: fine)").matches;

  const paper = { "--text": "#000", "--grid": "#ddd", "--line": "#bbb" };
  let printing = false; // the browser asks for the drawing before it takes on the style for paper

  const themed = () => {
    const colour = (name) => (printing ? paper[name] : own(name));
    const axis = { gridcolor: colour("--grid"), linecolor: colour("--line"), tickcolor: colour("--line") };
    return { text: colour("--text"), axis };
  };

  const dress = (layout) => {
    const { text, axis } = themed();
    const dressed = { ...layout, dragmode: fine ? "zoom" : false };
    dressed.font = { ...layout.font, color: text };
    dressed.xaxis = { ...layout.xaxis, ...axis };
    dressed.yaxis = { ...layout.yaxis, ...axis };
    return dressed;
  };

  const config = { displayModeBar: false, responsive: true };
  for (const plot of plots) {
    const { data, layout } = JSON.parse(plot.querySelector("script").textContent);
    plot.querySelector("script").remove();
    const narrow = plot.clientWidth < 500 && data.filter((trace) => trace.showlegend !== false).length > 3;
    if (narrow) layout.height += 90; // the legend takes a line per entry
    Plotly.newPlot(plot, data, dress(layout), config);
  }

  const restyle = (width) => {
    const { text, axis } = themed();
    for (const plot of plots) {
      const update = { "font.color": text };
      for (const [name, value] of Object.entries(axis)) {
        update["xaxis." + name] = value;
        update["yaxis." + name] = value;
      }
      if (width !== undefined) Object.assign(update, width ? { width, autosize: false } : { width: null, autosize: true });
      Plotly.relayout(plot, update);
    }
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => restyle());
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details.use")) details.open = true;
    printing = true;
    restyle(640);
  });
  addEventListener("afterprint", () => {
    printing = false;
    restyle(0);
  });

  const slider = document.getElementById("budget");
  if (slider) {
    const choices = JSON.parse(document.getElementById("choices").textContent);
    const marked = document.querySelector("#figure-frontier .plot");
    const show = () => {
      const choice = choices[slider.valueAsNumber];
      for (const [name, value] of Object.entries(choice.shown)) {
        document.querySelector(`[data-choice="${name}"]`).textContent = value;
      }
      for (const axis of ["depth", "width", "resolution"]) {
        document.querySelector(`[data-bar="${axis}"]`).style.inlineSize = 100 * choice[axis] + "%";
      }
      slider.setAttribute("aria-valuetext", choice.words);
      if (marked) Plotly.restyle(marked, { x: [[choice.x]], y: [[choice.y]] }, [marked.data.length - 1]);
    };
    slider.addEventListener("input", show);
    show();
  }

  for (const button of navigator.clipboard ? document.querySelectorAll("button.copy") : []) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
  }
})();
