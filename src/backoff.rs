//! The one retry policy everything uses: exponential bounds with full jitter.
//!
//! A [`Backoff`] says how long to wait before the next attempt, and nothing else: how many attempts there may be, and
//! until when, is for the caller to decide. The bound doubles with each failed attempt up to a maximum; the wait is drawn
//! uniformly from zero to the bound, so that clients that failed together do not come back together.
//!
//! Written by hand because the waits of a run are kept in its object's status and go on after a change of leader: attempt
//! numbers and deadlines come from there, which the crates for retries, with their state in memory, have no place for.

use std::time::Duration;

use crate::entropy::Entropy;

/// How long to wait between attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// What is doubled: the bound after the first failed attempt is twice this.
    pub initial: Duration,
    /// The bound that no wait exceeds.
    pub max: Duration,
}

impl Backoff {
    /// The longest wait between attempt `n` and attempt `n + 1`: `min(max, initial · 2^n)`, with `n` counted from 1.
    ///
    /// For `n` = 0 this is `initial`, bounded as well.
    #[must_use]
    pub fn bound(&self, n: u32) -> Duration {
        // A shift of 32 or more is past every maximum in use, unless `initial` is zero; multiplying saturates.
        let factor = 1_u32.checked_shl(n).unwrap_or(u32::MAX);
        self.initial.saturating_mul(factor).min(self.max)
    }

    /// The wait between attempt `n` and attempt `n + 1`, drawn uniformly from zero to [`Backoff::bound`].
    #[must_use]
    pub fn wait(&self, n: u32, entropy: &dyn Entropy) -> Duration {
        entropy.up_to(self.bound(n))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entropy::SeededEntropy;

    const POLICY: Backoff = Backoff { initial: Duration::from_secs(1), max: Duration::from_mins(1) };

    #[test]
    fn the_bound_doubles_from_twice_the_initial_wait_up_to_the_maximum() {
        let bounds: Vec<_> = (1..=8).map(|n| POLICY.bound(n).as_secs()).collect();
        assert_eq!(bounds, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(POLICY.bound(0), POLICY.initial);
    }

    #[test]
    fn a_great_number_of_attempts_does_not_overflow_the_bound() {
        for n in [31, 32, 33, 63, 64, 1_000, u32::MAX] {
            assert_eq!(POLICY.bound(n), POLICY.max);
            let unbounded = Backoff { initial: Duration::from_millis(1), max: Duration::MAX };
            assert!(unbounded.bound(n) >= unbounded.bound(30));
        }
    }

    #[test]
    fn an_initial_wait_above_the_maximum_is_bounded_by_it() {
        let policy = Backoff { initial: Duration::from_secs(90), max: Duration::from_mins(1) };
        assert_eq!(policy.bound(0), policy.max);
        assert_eq!(policy.bound(1), policy.max);
    }

    #[test]
    fn waits_spread_over_the_whole_of_zero_to_the_bound() {
        let entropy = SeededEntropy::shared(11);
        let mut tenths = [0_u32; 10];
        for _ in 0..10_000 {
            let wait = POLICY.wait(3, &*entropy);
            assert!(wait <= POLICY.bound(3));
            tenths[usize::try_from(wait.as_micros() * 10 / 8_000_001).expect("below ten")] += 1;
        }
        assert!(tenths.iter().all(|count| (800..1_200).contains(count)), "{tenths:?}");
    }

    proptest! {
        #[test]
        fn the_bound_never_falls_and_never_passes_the_maximum(
            initial in 0_u64..10_000_000, max in 0_u64..10_000_000, n in 0_u32..100,
        ) {
            let policy = Backoff { initial: Duration::from_millis(initial), max: Duration::from_millis(max) };
            prop_assert!(policy.bound(n) <= policy.bound(n + 1));
            prop_assert!(policy.bound(n + 1) <= policy.max);
        }
    }
}
