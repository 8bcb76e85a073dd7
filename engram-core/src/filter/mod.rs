//! The one filter grammar: which memories a recall returns and a spread activates.
//!
//! [`Filter::parse`] is called where a request enters and wherever a filter arrives over the
//! wire; [`Filter::matches`] inside the search and the spread. The grammar is in
//! docs/protocols/filter.md. Parsing is bounded in bytes and depth and never panics; matching
//! depends on the memory alone.

mod evaluate;
mod lexer;
mod parser;
mod render;

use crate::types::Unit;

/// A parsed filter.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    expression: Expression,
}

/// Why a text is no filter, and at which byte of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter, byte {position}: {reason}")]
pub struct FilterError {
    pub position: usize,
    pub reason: FilterErrorReason,
}

/// What is wrong there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterErrorReason {
    #[error("it has {bytes} bytes, at most {max} are allowed", max = crate::limits::FILTER_BYTES_MAX)]
    TooLong { bytes: usize },
    #[error("nested deeper than {max}", max = crate::limits::FILTER_DEPTH_MAX)]
    TooDeep,
    #[error("expected {expected}, found {found}")]
    Unexpected {
        expected: &'static str,
        found: String,
    },
    #[error("the text is not closed")]
    OpenText,
    #[error("\\{0} is no escape; there are \\\\ \\\" \\' \\n \\r \\t")]
    Escape(char),
    #[error("{0} is not a number")]
    Number(String),
    #[error("a confidence is in [0, 1]")]
    Confidence,
}

#[derive(Clone, Debug, PartialEq)]
enum Expression {
    /// At least two, none of them an `And`.
    And(Vec<Expression>),
    /// At least two, none of them an `Or`.
    Or(Vec<Expression>),
    Not(Box<Expression>),
    Test(Test),
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    /// The memory has one of these labels; never empty.
    Label(Vec<String>),
    /// The property is there.
    Exists(String),
    /// The property is a list with this item.
    Has {
        key: String,
        item: String,
    },
    /// The property equals one of these; never empty.
    In {
        key: String,
        values: Vec<Literal>,
    },
    Compare {
        key: String,
        comparison: Comparison,
        value: Literal,
    },
    Confidence {
        comparison: Comparison,
        value: Unit,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum Literal {
    Text(String),
    Number(f64),
    Boolean(bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    /// Exactly where `Equal` is false.
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[cfg(test)]
mod tests;
