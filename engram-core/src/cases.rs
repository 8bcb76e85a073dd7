//! How many cases a property is tried on: some in `make test`, many more in `make test-long`.

use proptest::test_runner::Config;

/// The factor of `make test-long` comes from here.
const VARIABLE: &str = "ENGRAM_CASES_FACTOR";

/// `count` cases, times the factor that the environment asks for.
pub fn cases(count: u32) -> Config {
    let factor = std::env::var(VARIABLE).ok();
    let factor: u32 = factor.and_then(|factor| factor.parse().ok()).unwrap_or(1);
    Config::with_cases(count.saturating_mul(factor))
}
