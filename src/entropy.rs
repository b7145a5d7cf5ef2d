//! Randomness, as an argument.
//!
//! Jitter and nonces come from an [`Entropy`], so that a simulation replays exactly from its seed.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};

/// A source of randomness that can be handed around.
pub type SharedEntropy = Arc<dyn Entropy>;

/// Where a replica gets its randomness.
pub trait Entropy: fmt::Debug + Send + Sync + 'static {
    /// The next 64 random bits.
    fn next_u64(&self) -> u64;
}

/// The operating system's randomness.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

/// Randomness that is the same for the same seed.
#[derive(Debug)]
pub struct SeededEntropy(Mutex<StdRng>);

impl dyn Entropy {
    /// A name that no one else will choose: 16 hexadecimal digits.
    pub fn nonce(&self) -> String {
        format!("{:016x}", self.next_u64())
    }

    /// A duration drawn uniformly from `[0, bound]`, at nanosecond resolution.
    pub fn up_to(&self, bound: Duration) -> Duration {
        let bound_nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        let drawn = (u128::from(self.next_u64()) * (u128::from(bound_nanos) + 1)) >> 64;
        Duration::from_nanos(u64::try_from(drawn).unwrap_or(bound_nanos))
    }
}

impl SystemEntropy {
    /// The system's randomness, ready to be handed around.
    #[must_use]
    pub fn shared() -> SharedEntropy {
        Arc::new(Self)
    }
}

impl Entropy for SystemEntropy {
    fn next_u64(&self) -> u64 {
        rand::rng().random()
    }
}

impl SeededEntropy {
    /// Randomness that follows from `seed`.
    #[must_use]
    pub fn shared(seed: u64) -> SharedEntropy {
        Arc::new(Self(Mutex::new(StdRng::seed_from_u64(seed))))
    }
}

impl Entropy for SeededEntropy {
    fn next_u64(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).random()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_nonces() {
        let (one, two) = (SeededEntropy::shared(7), SeededEntropy::shared(7));
        assert_eq!(one.nonce(), two.nonce());
        assert_ne!(one.nonce(), one.nonce());
    }

    #[test]
    fn a_drawn_duration_stays_within_its_bound() {
        let entropy = SeededEntropy::shared(1);
        let bound = Duration::from_millis(3);
        let drawn: Vec<_> = (0..1_000).map(|_| entropy.up_to(bound)).collect();
        assert!(drawn.iter().all(|duration| *duration <= bound));
        assert!(drawn.iter().any(|duration| *duration > bound / 2));
        assert_eq!(entropy.up_to(Duration::ZERO), Duration::ZERO);
    }
}
