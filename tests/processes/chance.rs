//! Chance with a seed that is printed, and taken back from `SEED`.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// What a test leaves to chance. The moments repeat with the seed; what the processes do in them
/// does not.
pub(crate) struct Chance(StdRng);

impl Chance {
    pub(crate) fn of(test: &str) -> Self {
        let seed = match std::env::var("SEED") {
            Ok(seed) => seed.parse().expect("SEED is a number"),
            Err(_) => RandomState::new().build_hasher().finish(),
        };
        println!("{test}: SEED={seed}");
        Self(StdRng::seed_from_u64(seed))
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0.random_range(0..n)
    }

    /// Lets a part of `most` pass, so that what comes next comes at a moment that nobody chose.
    pub(crate) async fn moment(&mut self, most: Duration) {
        tokio::time::sleep(most.mul_f64(self.0.random())).await;
    }

    /// The same in another order.
    pub(crate) fn shuffled<T: Clone>(&mut self, all: &[T]) -> Vec<T> {
        let mut rest = all.to_vec();
        let mut shuffled = Vec::new();
        while !rest.is_empty() {
            let i = self.below(rest.len());
            shuffled.push(rest.swap_remove(i));
        }
        shuffled
    }
}
