//! Deterministic changes of an input: the same number gives the same bytes on every machine.

/// The longest changed input, in bytes.
const BYTES_MAX: usize = 64 << 10;

/// Bytes that mean something to one of the parsers.
const SPECIAL: &[u8] = b"\0\n\r\t \"'\\/.:;,*?#%&=-+@[]{}()<>|~$^`!09azAZ_\x7f\x80\xc3\xff";

/// xorshift64*, which needs no crate.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`; 0 if there is none.
    fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() >> 16) as usize % end }
    }
}

/// The change of this number: one of the seeds, with one to eight edits.
pub fn change(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut numbers = Numbers(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut input = seeds[numbers.below(seeds.len())].clone();
    for _ in 0..=numbers.below(8) {
        edit(&mut input, seeds, &mut numbers);
    }
    input.truncate(BYTES_MAX);
    input
}

fn edit(input: &mut Vec<u8>, seeds: &[Vec<u8>], numbers: &mut Numbers) {
    let at = numbers.below(input.len());
    match numbers.below(7) {
        0 if !input.is_empty() => input[at] ^= 1 << numbers.below(8),
        1 if !input.is_empty() => input[at] = SPECIAL[numbers.below(SPECIAL.len())],
        2 => input.insert(at, SPECIAL[numbers.below(SPECIAL.len())]),
        3 => input.truncate(at),
        4 => {
            let end = at + numbers.below((input.len() - at).min(32));
            input.drain(at..end);
        }
        // A piece of itself again.
        5 => {
            let end = at + numbers.below((input.len() - at).min(256));
            let piece = input[at..end].to_vec();
            input.splice(at..at, piece);
        }
        // A piece of another seed.
        _ => {
            let other = &seeds[numbers.below(seeds.len())];
            let start = numbers.below(other.len());
            let end = start + numbers.below((other.len() - start).min(64));
            input.splice(at..at, other[start..end].iter().copied());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_one_change() {
        let seeds = [b"{\"a\": 1}".to_vec(), Vec::new()];
        let all: std::collections::BTreeSet<_> = (0..100).map(|number| change(&seeds, number)).collect();
        assert!(all.len() > 50, "{} different changes", all.len());
        assert_eq!(change(&seeds, 7), change(&seeds, 7));
    }
}
