// Colors that color-blind people can tell apart (the palette of the package's figures), each with a line of its own.

const PALETTE = ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"];

/** Color of an object in every picture and table of its image. */
export const objectColor = (target) => PALETTE[target % PALETTE.length];

/** Color of the text on a background of this color: dark or white, whichever has more contrast (WCAG 2). */
export function inkOn(color) {
  const [r, g, b] = [1, 3, 5].map((i) => linear(parseInt(color.slice(i, i + 2), 16) / 255));
  const luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.056 ? "#fff" : "#111";
}

const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);

/** How an object's fate in the output looks: color, dashes and sign. */
export const OUTCOMES = {
  found: { color: "#029e73", dash: null, sign: "✓" },
  doubled: { color: "#de8f05", dash: "10 4", sign: "×2" },
  missed: { color: "#d55e00", dash: "2 4", sign: "✕" },
};

/** How a detection looks. */
export const DETECTIONS = {
  found: { color: "#029e73", dash: null },
  duplicate: { color: "#de8f05", dash: "8 3" },
  background: { color: "#cc78bc", dash: "2 3" },
};

/** Color of the n-th cause in a bar. */
export const barColor = (index) => PALETTE[index % PALETTE.length];
