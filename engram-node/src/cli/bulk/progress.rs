//! Progress bars on standard error; silent when that is no terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const TEMPLATE: &str = "{prefix:>10} [{bar:30}] {human_pos}/{human_len}  {per_sec}  {eta} left";
const TEMPLATE_OPEN: &str = "{prefix:>10} {spinner} {human_pos}  {per_sec}";

/// Whether bars are wanted at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Shown,
    Hidden,
}

impl Progress {
    /// A bar over `total` items, or one without an end.
    #[must_use]
    pub fn bar(self, what: &'static str, total: Option<u64>) -> ProgressBar {
        let target = match self {
            Self::Shown => ProgressDrawTarget::stderr(),
            Self::Hidden => ProgressDrawTarget::hidden(),
        };
        let template = if total.is_some() {
            TEMPLATE
        } else {
            TEMPLATE_OPEN
        };
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        ProgressBar::with_draw_target(total, target)
            .with_style(style)
            .with_prefix(what)
    }
}

/// Items per second, for summaries.
#[must_use]
pub fn rate(items: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds <= 0.0 {
        return "-".to_owned();
    }
    format!("{}/s", thousands((items as f64 / seconds).round() as u64))
}

/// A number with commas.
#[must_use]
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let grouped = [0, 999, 1_000, 107_963, 1_000_000].map(thousands);
        assert_eq!(grouped, ["0", "999", "1,000", "107,963", "1,000,000"]);
        assert_eq!(rate(3_000, Duration::from_millis(1_500)), "2,000/s");
        assert_eq!(rate(3, Duration::ZERO), "-");
    }

    #[test]
    fn the_templates_are_valid() {
        for template in [TEMPLATE, TEMPLATE_OPEN] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
