//! What the tests of the smaller worlds do with planted bugs: each must be found.

/// Runs the seeds below `seeds` with each bug until one breaks something.
///
/// # Panics
/// When one of the bugs is not found.
pub fn each_is_found(names: &[&str], seeds: u64, broken: impl Fn(u64) -> Option<String>) {
    for name in names {
        let _active = engram_core::planted::activate(name).expect("it is registered");
        let mut found = (0..seeds).filter_map(|seed| broken(seed).map(|what| (seed, what)));
        let (seed, what) = found
            .next()
            .unwrap_or_else(|| panic!("{name} was not found"));
        println!("{name}: seed {seed}: {what}");
    }
}
