//! From tokens to a filter, by recursive descent of bounded depth.

use super::lexer::{Token, tokens};
use super::{Comparison, Expression, Filter, FilterError, FilterErrorReason, Literal, Test};
use crate::limits::{FILTER_BYTES_MAX, FILTER_DEPTH_MAX};
use crate::types::Unit;

impl Filter {
    /// Parses a filter. An empty text is no filter: callers take it as "all" before this.
    ///
    /// # Errors
    /// When the text is too long, nested too deep, or not of the grammar.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if text.len() > FILTER_BYTES_MAX {
            let reason = FilterErrorReason::TooLong { bytes: text.len() };
            return Err(FilterError {
                position: FILTER_BYTES_MAX,
                reason,
            });
        }
        let mut parser = Parser {
            tokens: tokens(text)?,
            next: 0,
            depth: 0,
        };
        let expression = parser.any()?;
        match parser.peek() {
            Token::End => Ok(Self { expression }),
            _ => Err(parser.unexpected("'and', 'or' or the end")),
        }
    }
}

struct Parser {
    /// The last one is [`Token::End`], which is never passed.
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
}

type Parsed<T> = Result<T, FilterError>;

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.next].1
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        if token != Token::End {
            self.next += 1;
        }
        token
    }

    fn error(&self, reason: FilterErrorReason) -> FilterError {
        FilterError {
            position: self.tokens[self.next].0,
            reason,
        }
    }

    fn unexpected(&self, expected: &'static str) -> FilterError {
        let found = self.peek().describe();
        self.error(FilterErrorReason::Unexpected { expected, found })
    }

    /// Keywords are known in any case.
    fn eat_word(&mut self, keyword: &str) -> bool {
        let found = matches!(self.peek(), Token::Word(word) if word.eq_ignore_ascii_case(keyword));
        if found {
            self.next += 1;
        }
        found
    }

    fn expect(&mut self, token: &Token, expected: &'static str) -> Parsed<()> {
        if self.peek() == token {
            self.take();
            Ok(())
        } else {
            Err(self.unexpected(expected))
        }
    }

    fn any(&mut self) -> Parsed<Expression> {
        let mut parts = vec![self.all()?];
        while self.eat_word("or") {
            parts.push(self.all()?);
        }
        Ok(join(parts, Expression::Or, |part| match part {
            Expression::Or(inner) => Ok(inner),
            other => Err(other),
        }))
    }

    fn all(&mut self) -> Parsed<Expression> {
        let mut parts = vec![self.one()?];
        while self.eat_word("and") {
            parts.push(self.one()?);
        }
        Ok(join(parts, Expression::And, |part| match part {
            Expression::And(inner) => Ok(inner),
            other => Err(other),
        }))
    }

    fn one(&mut self) -> Parsed<Expression> {
        if self.depth == FILTER_DEPTH_MAX {
            return Err(self.error(FilterErrorReason::TooDeep));
        }
        self.depth += 1;
        let expression = if self.eat_word("not") {
            Expression::Not(Box::new(self.one()?))
        } else if *self.peek() == Token::Open {
            self.take();
            let inner = self.any()?;
            self.expect(&Token::Close, "')'")?;
            inner
        } else {
            Expression::Test(self.test()?)
        };
        self.depth -= 1;
        Ok(expression)
    }

    fn test(&mut self) -> Parsed<Test> {
        if self.eat_word("label") {
            self.label()
        } else if self.eat_word("confidence") {
            self.confidence()
        } else if self.eat_word("exists") {
            self.expect(&Token::Open, "'('")?;
            let key = self.property()?;
            self.expect(&Token::Close, "')'")?;
            Ok(Test::Exists(key))
        } else if matches!(self.peek(), Token::Word(word) if word.eq_ignore_ascii_case("property"))
        {
            self.property_test()
        } else {
            Err(self.unexpected("'label', 'property', 'confidence', 'exists', 'not' or '('"))
        }
    }

    fn label(&mut self) -> Parsed<Test> {
        if self.eat_word("in") {
            return Ok(Test::Label(self.list(Self::text)?));
        }
        self.expect(&Token::Comparison(Comparison::Equal), "'=' or 'in'")?;
        Ok(Test::Label(vec![self.text()?]))
    }

    fn confidence(&mut self) -> Parsed<Test> {
        let comparison = self.comparison("a comparison")?;
        let Token::Number(number) = *self.peek() else {
            return Err(self.unexpected("a number"));
        };
        let value =
            Unit::from_f64(number).map_err(|_| self.error(FilterErrorReason::Confidence))?;
        self.take();
        Ok(Test::Confidence { comparison, value })
    }

    fn property_test(&mut self) -> Parsed<Test> {
        let key = self.property()?;
        if self.eat_word("has") {
            return Ok(Test::Has {
                key,
                item: self.text()?,
            });
        }
        if self.eat_word("in") {
            return Ok(Test::In {
                key,
                values: self.list(Self::literal)?,
            });
        }
        let comparison = self.comparison("a comparison, 'in' or 'has'")?;
        Ok(Test::Compare {
            key,
            comparison,
            value: self.literal()?,
        })
    }

    /// `property.name`, `property.name.with.dots` or `property."any name"`.
    fn property(&mut self) -> Parsed<String> {
        if !self.eat_word("property") {
            return Err(self.unexpected("'property'"));
        }
        self.expect(&Token::Dot, "'.'")?;
        if let Token::Text(key) = self.peek() {
            let key = key.clone();
            self.take();
            return Ok(key);
        }
        let mut key = self.name()?;
        while *self.peek() == Token::Dot {
            self.take();
            key.push('.');
            key.push_str(&self.name()?);
        }
        Ok(key)
    }

    fn name(&mut self) -> Parsed<String> {
        match self.peek() {
            Token::Word(word) => {
                let word = word.clone();
                self.take();
                Ok(word)
            }
            _ => Err(self.unexpected("a property name")),
        }
    }

    fn comparison(&mut self, expected: &'static str) -> Parsed<Comparison> {
        match *self.peek() {
            Token::Comparison(comparison) => {
                self.take();
                Ok(comparison)
            }
            _ => Err(self.unexpected(expected)),
        }
    }

    fn text(&mut self) -> Parsed<String> {
        match self.peek() {
            Token::Text(text) => {
                let text = text.clone();
                self.take();
                Ok(text)
            }
            _ => Err(self.unexpected("a text in quotes")),
        }
    }

    fn literal(&mut self) -> Parsed<Literal> {
        let literal = match self.peek() {
            Token::Text(text) => Literal::Text(text.clone()),
            Token::Number(number) => Literal::Number(*number),
            Token::Word(word) if word.eq_ignore_ascii_case("true") => Literal::Boolean(true),
            Token::Word(word) if word.eq_ignore_ascii_case("false") => Literal::Boolean(false),
            _ => return Err(self.unexpected("a text in quotes, a number, true or false")),
        };
        self.take();
        Ok(literal)
    }

    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        self.expect(&Token::Open, "'('")?;
        let mut items = vec![item(self)?];
        while *self.peek() == Token::Comma {
            self.take();
            items.push(item(self)?);
        }
        self.expect(&Token::Close, "',' or ')'")?;
        Ok(items)
    }
}

/// One part stays itself; parts of the same kind, which came in parentheses, are taken in.
fn join(
    mut parts: Vec<Expression>,
    make: fn(Vec<Expression>) -> Expression,
    open: fn(Expression) -> Result<Vec<Expression>, Expression>,
) -> Expression {
    if parts.len() == 1
        && let Some(only) = parts.pop()
    {
        return only;
    }
    let mut flat = Vec::new();
    for part in parts {
        match open(part) {
            Ok(inner) => flat.extend(inner),
            Err(other) => flat.push(other),
        }
    }
    make(flat)
}
