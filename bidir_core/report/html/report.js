"use strict";
// Charts, their download buttons, and the filter of the flips. No request leaves this file.
(() => {
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const options = { displayModeBar: false, responsive: true };

  for (const plot of plots) {
    const { data, layout } = figures[plot.dataset.chart];
    layout.font = { color: style("--ink"), family: "system-ui, sans-serif" };
    Plotly.newPlot(plot, data, layout, options);
  }
  const paint = (ink) => plots.forEach((plot) => Plotly.relayout(plot, { "font.color": ink }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint(style("--ink")));

  // Paper is white and cannot be clicked open.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details.long:not([open])")];
    closed.forEach((one) => { one.open = true; });
    paint("#000");
  });
  addEventListener("afterprint", () => {
    closed.forEach((one) => { one.open = false; });
    paint(style("--ink"));
  });

  const download = (href, name) => {
    const link = document.createElement("a");
    link.href = href;
    link.download = name;
    link.click();
  };
  const toPng = (svg, width, height) => new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => {
      const canvas = document.createElement("canvas");
      canvas.width = 2 * width;
      canvas.height = 2 * height;
      const pen = canvas.getContext("2d");
      pen.fillStyle = style("--paper");
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      done(canvas.toDataURL("image/png"));
    };
    image.onerror = failed;
    image.src = svg;
  });
  for (const button of document.querySelectorAll("[data-format]")) {
    button.addEventListener("click", async () => {
      const plot = button.closest(".chart").querySelector(".plot");
      const width = plot.clientWidth, height = plot.clientHeight;
      const svg = await Plotly.toImage(plot, { format: "svg", width, height });
      const format = button.dataset.format;
      const name = `${figures.stem}_${plot.dataset.chart}.${format}`;
      download(format === "svg" ? svg : await toPng(svg, width, height), name);
    });
  }

  for (const box of document.querySelectorAll(".flips")) {
    const filter = box.querySelector(".filter");
    const [task, text] = [filter.querySelector("select"), filter.querySelector("input")];
    const rows = [...box.querySelectorAll("tr[data-flip]")];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const chips = [...filter.querySelectorAll("[data-flip]")];
    let flip = "";
    const apply = () => {
      const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, i) => {
        const fits = (!flip || row.dataset.flip === flip) && (!task.value || row.dataset.task === task.value)
          && words.every((word) => texts[i].includes(word));
        row.hidden = !fits;
        shown += fits;
      });
      filter.querySelector("output").textContent = `${shown} of ${rows.length} shown`;
    };
    chips.forEach((chip) => chip.addEventListener("click", () => {
      flip = chip.dataset.flip;
      chips.forEach((one) => one.setAttribute("aria-pressed", String(one === chip)));
      apply();
    }));
    filter.addEventListener("input", apply);
    apply();
  }
})();
