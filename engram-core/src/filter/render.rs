//! A filter as text that parses to the same filter, with no parenthesis more than it needs.

use std::fmt::{self, Display, Formatter, Write};

use super::lexer::is_name;
use super::{Comparison, Expression, Filter, Literal, Test};

impl Display for Filter {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.expression.fmt(f)
    }
}

impl Display for Expression {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::And(all) => separated(f, all, " and ", |f, part| match part {
                Self::Or(_) => write!(f, "({part})"),
                _ => part.fmt(f),
            }),
            Self::Or(any) => separated(f, any, " or ", |f, part| part.fmt(f)),
            Self::Not(inner) => match **inner {
                Self::And(_) | Self::Or(_) => write!(f, "not ({inner})"),
                _ => write!(f, "not {inner}"),
            },
            Self::Test(test) => test.fmt(f),
        }
    }
}

impl Display for Test {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(labels) => {
                if let [label] = labels.as_slice() {
                    f.write_str("label = ")?;
                    return quoted(f, label);
                }
                f.write_str("label in (")?;
                separated(f, labels, ", ", |f, label| quoted(f, label))?;
                f.write_char(')')
            }
            Self::Exists(key) => write!(f, "exists({})", Key(key)),
            Self::Has { key, item } => {
                write!(f, "{} has ", Key(key))?;
                quoted(f, item)
            }
            Self::In { key, values } => {
                write!(f, "{} in (", Key(key))?;
                separated(f, values, ", ", |f, value| value.fmt(f))?;
                f.write_char(')')
            }
            Self::Compare {
                key,
                comparison,
                value,
            } => {
                write!(f, "{} {} {value}", Key(key), comparison.symbol())
            }
            Self::Confidence { comparison, value } => {
                write!(f, "confidence {} {:?}", comparison.symbol(), value.to_f64())
            }
        }
    }
}

impl Display for Literal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => quoted(f, text),
            Self::Number(number) => write!(f, "{number:?}"),
            Self::Boolean(boolean) => boolean.fmt(f),
        }
    }
}

impl Comparison {
    pub(super) fn symbol(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }
}

struct Key<'a>(&'a str);

impl Display for Key<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("property.")?;
        let starts_well =
            |name: &str| name.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic());
        if self
            .0
            .split('.')
            .all(|name| starts_well(name) && name.chars().all(is_name))
        {
            f.write_str(self.0)
        } else {
            quoted(f, self.0)
        }
    }
}

fn quoted(f: &mut Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            other => f.write_char(other)?,
        }
    }
    f.write_char('"')
}

fn separated<T>(
    f: &mut Formatter<'_>,
    items: &[T],
    separator: &str,
    mut write: impl FnMut(&mut Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(separator)?;
        }
        write(f, item)?;
    }
    Ok(())
}
