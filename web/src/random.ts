/** The numbers of `torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))`. */

/** MT19937 (Matsumoto and Nishimura, 1998), seeded with 32 bits as PyTorch seeds it. */
class MersenneTwister {
  private state = new Uint32Array(624);
  private next = 624;

  constructor(seed: number) {
    this.state[0] = seed >>> 0;
    for (let i = 1; i < 624; i++) {
      const before = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, before) + i;
    }
  }

  uint32(): number {
    if (this.next === 624) this.twist();
    let y = this.state[this.next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  private twist(): void {
    const state = this.state;
    for (let i = 0; i < 624; i++) {
      const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }
}

/** Return one float32 in [0, 1) per token of an image: (L,), as `UniformNumbers` reads them. */
export function uniformNumbers(seed: number, length: number): Float32Array {
  const generator = new MersenneTwister(seed);
  return Float32Array.from({ length }, () => {
    const high = generator.uint32() & 0x1fffff; // a double has 53 bits
    const number = (high * 2 ** 32 + generator.uint32()) * 2 ** -53;
    return Math.min(Math.fround(number), 1 - 2 ** -24);
  });
}
