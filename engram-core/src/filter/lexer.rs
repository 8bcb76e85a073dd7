//! From text to tokens, each with its byte position.

use super::{Comparison, FilterError, FilterErrorReason};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A keyword, or a name, as written.
    Word(String),
    Text(String),
    Number(f64),
    Comparison(Comparison),
    Open,
    Close,
    Comma,
    Dot,
    End,
}

impl Token {
    /// For error messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Word(word) => word.clone(),
            Self::Text(text) => format!("text {text:?}"),
            Self::Number(number) => format!("{number:?}"),
            Self::Comparison(comparison) => comparison.symbol().into(),
            Self::Open => "(".into(),
            Self::Close => ")".into(),
            Self::Comma => ",".into(),
            Self::Dot => ".".into(),
            Self::End => "the end".into(),
        }
    }
}

pub(super) fn tokens(text: &str) -> Result<Vec<(usize, Token)>, FilterError> {
    let mut lexer = Lexer { text, position: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip(char::is_whitespace);
        let position = lexer.position;
        let token = lexer
            .token()
            .map_err(|reason| FilterError { position, reason })?;
        let is_end = token == Token::End;
        tokens.push((position, token));
        if is_end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    position: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }

    /// Moves over what fits, and gives it.
    fn skip(&mut self, fits: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|c| !fits(c)).unwrap_or(rest.len());
        self.position += length;
        &rest[..length]
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest().chars().next()?;
        self.position += next.len_utf8();
        Some(next)
    }

    fn eat(&mut self, expected: char) -> bool {
        let found = self.rest().starts_with(expected);
        if found {
            self.position += expected.len_utf8();
        }
        found
    }

    fn token(&mut self) -> Result<Token, FilterErrorReason> {
        let Some(first) = self.rest().chars().next() else {
            return Ok(Token::End);
        };
        if first == '_' || first.is_ascii_alphabetic() {
            return Ok(Token::Word(self.skip(is_name).into()));
        }
        if first == '-' || first.is_ascii_digit() {
            return self.number();
        }
        self.next();
        let token = match first {
            '(' => Token::Open,
            ')' => Token::Close,
            ',' => Token::Comma,
            '.' => Token::Dot,
            '"' | '\'' => Token::Text(self.quoted(first)?),
            '=' => Token::Comparison(Comparison::Equal),
            '!' if self.eat('=') => Token::Comparison(Comparison::NotEqual),
            '<' if self.eat('=') => Token::Comparison(Comparison::LessOrEqual),
            '<' => Token::Comparison(Comparison::Less),
            '>' if self.eat('=') => Token::Comparison(Comparison::GreaterOrEqual),
            '>' => Token::Comparison(Comparison::Greater),
            other => {
                let expected = "a name, a text, a number, an operator or a parenthesis";
                let found = format!("{other:?}");
                return Err(FilterErrorReason::Unexpected { expected, found });
            }
        };
        Ok(token)
    }

    fn number(&mut self) -> Result<Token, FilterErrorReason> {
        let start = self.position;
        self.eat('-');
        self.skip(|c| c.is_ascii_digit() || c == '.');
        if self.eat('e') || self.eat('E') {
            let _ = self.eat('-') || self.eat('+');
            self.skip(|c| c.is_ascii_digit());
        }
        let written = &self.text[start..self.position];
        match written.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Token::Number(number)),
            _ => Err(FilterErrorReason::Number(written.into())),
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String, FilterErrorReason> {
        let mut text = String::new();
        loop {
            let next = self.next().ok_or(FilterErrorReason::OpenText)?;
            if next == quote {
                return Ok(text);
            }
            if next != '\\' {
                text.push(next);
                continue;
            }
            text.push(match self.next().ok_or(FilterErrorReason::OpenText)? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                same @ ('\\' | '"' | '\'') => same,
                other => return Err(FilterErrorReason::Escape(other)),
            });
        }
    }
}

/// Whether a name may hold it. The first character is a letter or `_`.
pub(super) fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}
