/** Codes from logits: top-k, top-p and the choice by inversion, as mvar_kernels/backends/codes.py. */

export interface Filters {
  topK: number;
  topP: number;
}

/** Sample a code from guided logits (V,) with a number in [0, 1). */
export function sampleCode(logits: Float32Array, uniform: number, filters: Filters): number {
  const highest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const { least, ties } = edge(logits, highest, filters);
  const cumulative = new Float32Array(logits.length);
  let sum = 0;
  let left = ties;
  for (let code = 0; code < logits.length; code++) {
    const value = logits[code];
    if (value > least || (value === least && left-- > 0)) sum += Math.fround(Math.exp(value - highest));
    cumulative[code] = sum;
  }
  const total = cumulative[logits.length - 1];
  const threshold = Math.fround(uniform * total);
  const code = cumulative.findIndex((each) => each > threshold);
  // Rounding may put the threshold on the very end of the sum.
  return code < 0 ? cumulative.indexOf(total) : code;
}

/** Return the least logit that the filters keep, and how many of those equal to it. */
function edge(logits: Float32Array, highest: number, { topK, topP }: Filters): { least: number; ties: number } {
  const sorted = Float32Array.from(logits).sort().reverse();
  const count = topK > 0 ? Math.min(topK, sorted.length) : sorted.length;
  const kth = sorted[count - 1];
  const kept = topK > 0 ? sorted.findLastIndex((each) => each === kth) + 1 : sorted.length;
  if (!(topP > 0 && topP < 1)) return { least: kth, ties: Infinity };
  const weights = sorted.subarray(0, kept).map((each) => Math.exp(each - highest));
  const wanted = topP * weights.reduce((a, b) => a + b, 0);
  let sum = 0;
  for (let rank = 0; rank < kept; rank++) {
    sum += weights[rank];
    if (sum >= wanted || rank === kept - 1) {
      const least = sorted[rank];
      return { least, ties: rank - sorted.indexOf(least) + 1 };
    }
  }
  return { least: kth, ties: Infinity };
}
