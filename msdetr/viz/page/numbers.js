// Arrays of numbers as they travel in the page: base64, little-endian, in 32 or 16 bits.

/** Bytes of a base64 text. */
function bytes(text) {
  const letters = atob(text);
  const out = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) out[i] = letters.charCodeAt(i);
  return out;
}

/** The number that 16 bits stand for in IEEE 754 half precision. */
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -14 * (fraction / 1024);
}

/**
 * An array from {type, data, low?, high?}: "f4" floats, "f2" half-precision floats, "q2" 65,536 equal steps from low to high,
 * "u1" and "u2" whole numbers. Lists are taken as they are; nothing stays null.
 */
export function unpack(packed) {
  if (packed === null || packed === undefined || Array.isArray(packed)) return packed ?? null;
  const raw = bytes(packed.data);
  if (packed.type === "u1") return raw;
  const view = new DataView(raw.buffer);
  if (packed.type === "f4") return Float32Array.from({ length: raw.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
  const whole = Uint16Array.from({ length: raw.length / 2 }, (_, i) => view.getUint16(2 * i, true));
  if (packed.type === "u2") return whole;
  if (packed.type === "f2") return Float32Array.from(whole, half);
  const step = (packed.high - packed.low) / 65535;
  return Float32Array.from(whole, (n) => packed.low + n * step);
}

/** A number with so many digits after the point, with a true minus sign; a dash where there is none. */
export function number(value, digits = 2) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `−${text}` : text;
}

/** Python's format "g" for the settings of sliders: no zeros at the end. */
export const plain = (value) => String(Number(value.toPrecision(6)));

/** Indices by falling value, ties by index. */
export const ranking = (values) =>
  Array.from(values, (_, i) => i).sort((a, b) => values[b] - values[a] || a - b);
