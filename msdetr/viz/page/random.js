// The random order in which the released rule keeps votes: the one that the package draws with seed 0, so that the page
// and the package keep the same ones.

/** Mersenne Twister (Matsumoto and Nishimura, 1998): a function that returns the next 32 bits. */
function twister(seed) {
  const SIZE = 624;
  const SHIFT = 397;
  const words = new Uint32Array(SIZE);
  words[0] = seed;
  for (let i = 1; i < SIZE; i++) words[i] = Math.imul(1812433253, words[i - 1] ^ (words[i - 1] >>> 30)) + i;
  let next = SIZE;
  const renew = () => {
    for (let i = 0; i < SIZE; i++) {
      const mixed = (words[i] & 0x80000000) | (words[(i + 1) % SIZE] & 0x7fffffff);
      words[i] = words[(i + SHIFT) % SIZE] ^ (mixed >>> 1) ^ (mixed & 1 ? 0x9908b0df : 0);
    }
    next = 0;
  };
  return () => {
    if (next === SIZE) renew();
    let bits = words[next++];
    bits ^= bits >>> 11;
    bits ^= (bits << 7) & 0x9d2c5680;
    bits ^= (bits << 15) & 0xefc60000;
    return (bits ^ (bits >>> 18)) >>> 0;
  };
}

/** A function of n that returns 0 … n−1 in random order; what one call draws, the next does not see again. */
export function permutations(seed = 0) {
  const draw = twister(seed);
  return (n) => {
    const order = Array.from({ length: n }, (_, i) => i);
    for (let i = 0; i < n - 1; i++) {
      const j = i + (draw() % (n - i));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  };
}
