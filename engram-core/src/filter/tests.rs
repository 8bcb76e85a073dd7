//! The grammar, what it means, and that nothing makes it panic.

use proptest::prelude::*;

use super::*;
use crate::limits::{FILTER_BYTES_MAX, FILTER_DEPTH_MAX};
use crate::types::{Hlc, Memory, MemoryId, PropertyValue, Sequence};

fn memory() -> Memory {
    let text = |text: &str| PropertyValue::Text(text.into());
    Memory {
        id: MemoryId::new("m").expect("a valid id"),
        content: String::new(),
        embedding_model: String::new(),
        labels: ["verb.body", "common"].map(String::from).into(),
        properties: [
            ("pos", text("v")),
            ("year", PropertyValue::Number(1990.0)),
            ("seen", PropertyValue::Boolean(true)),
            (
                "words",
                PropertyValue::List(vec!["breathe".into(), "respire".into()]),
            ),
            ("a.b", text("dots")),
            ("two words", text("it's \"so\"\n")),
        ]
        .map(|(key, value)| (key.to_string(), value))
        .into(),
        confidence: Unit::from_f64(0.8).expect("in range"),
        version: Sequence(1),
        created: Hlc::default(),
        updated: Hlc::default(),
    }
}

fn matches(text: &str) -> bool {
    Filter::parse(text)
        .unwrap_or_else(|error| panic!("{text}: {error}"))
        .matches(&memory())
}

#[test]
fn these_hold() {
    for text in [
        r#"label = "verb.body""#,
        "label in ('x', 'common')",
        r#"property.pos = "v" AND property.year >= 1990"#,
        "property.year < 1990.5 and property.year > -1e3 and property.year in (1, 1990)",
        r#"property.words has "respire""#,
        "property.seen = true and not property.seen = false",
        "confidence >= 0.5 and confidence = 0.8 and confidence < 1",
        "exists(property.pos) and not exists(property.absent)",
        r#"property.a.b = "dots" and property."a.b" = 'dots'"#,
        r#"property."two words" = 'it\'s "so"\n'"#,
        r#"property.absent != "v" and property.year != "1990" and property.words != "respire""#,
        "label = 'x' or label = 'common' and property.pos = 'v'",
        "not (label = 'x' or label = 'y')",
        "property.pos > 'a'",
        "((((label = 'common'))))",
        "property.in = 1 or property.not != true",
    ] {
        assert!(matches(text), "{text}");
    }
}

#[test]
fn these_do_not_hold() {
    for text in [
        "label = 'verb'",
        "property.pos = 'n'",
        "property.year = '1990'",
        "property.year > 1990",
        "property.absent < 1",
        "property.absent >= 1",
        "property.pos has 'v'",
        "property.words = 'respire'",
        "confidence > 0.8",
        "(label = 'x' or label = 'common') and property.pos = 'n'",
    ] {
        assert!(!matches(text), "{text}");
    }
}

#[test]
fn errors_say_where_and_what() {
    for (text, position, part) in [
        ("", 0, "found the end"),
        ("label", 5, "'=' or 'in'"),
        ("label = verb", 8, "text in quotes"),
        ("label = 'a' label", 12, "'and', 'or' or the end"),
        ("label = 'a", 8, "not closed"),
        (r"label = '\q'", 8, "no escape"),
        ("property = 1", 9, "'.'"),
        ("property.x has 1", 15, "text in quotes"),
        ("property.x in ()", 15, "text in quotes"),
        ("property.x = 1.2.3", 13, "not a number"),
        ("property.x = -", 13, "not a number"),
        ("property.x = 1e999", 13, "not a number"),
        ("confidence > 1.5", 13, "[0, 1]"),
        ("confidence > -1", 13, "[0, 1]"),
        ("exists property.x", 7, "'('"),
        ("(label = 'a'", 12, "')'"),
        ("name = 'a'", 0, "'label'"),
        ("label ~ 'a'", 6, "operator"),
        ("label = 'a' and", 15, "found the end"),
    ] {
        let error = Filter::parse(text).expect_err(text);
        assert_eq!(error.position, position, "{text}: {error}");
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
}

#[test]
fn bounds_hold_to_the_byte_and_the_level() {
    let long = format!("label = '{}'", "x".repeat(FILTER_BYTES_MAX - 10));
    assert_eq!(long.len(), FILTER_BYTES_MAX);
    assert!(Filter::parse(&long).is_ok());
    let error = Filter::parse(&format!("{long} ")).expect_err("one byte too long");
    assert_eq!(
        error.reason,
        FilterErrorReason::TooLong {
            bytes: FILTER_BYTES_MAX + 1
        }
    );

    let nested = |depth: usize| format!("{}label = 'a'{}", "(".repeat(depth), ")".repeat(depth));
    assert!(Filter::parse(&nested(FILTER_DEPTH_MAX - 1)).is_ok());
    let error = Filter::parse(&nested(FILTER_DEPTH_MAX)).expect_err("one level too deep");
    assert_eq!(error.reason, FilterErrorReason::TooDeep);
    let negated = format!("{}label = 'a'", "not ".repeat(FILTER_DEPTH_MAX));
    assert!(Filter::parse(&negated).is_err());
    let wide = vec!["label = 'a'"; 200].join(" and ");
    assert!(Filter::parse(&wide).is_ok());
}

#[test]
fn parentheses_are_kept_only_where_needed() {
    for (text, rendered) in [
        (
            "(label = 'a') and (label = 'b')",
            r#"label = "a" and label = "b""#,
        ),
        (
            "(label='a' or label='b') and label='c'",
            r#"(label = "a" or label = "b") and label = "c""#,
        ),
        (
            "NOT (label='a' and label='b')",
            r#"not (label = "a" and label = "b")"#,
        ),
        ("property.'x y' = 1", r#"property."x y" = 1.0"#),
    ] {
        assert_eq!(
            Filter::parse(text).map(|filter| filter.to_string()),
            Ok(rendered.into())
        );
    }
}

fn comparison() -> impl Strategy<Value = Comparison> {
    use Comparison::*;
    prop::sample::select(vec![
        Equal,
        NotEqual,
        Less,
        LessOrEqual,
        Greater,
        GreaterOrEqual,
    ])
}

fn literal() -> impl Strategy<Value = Literal> {
    prop_oneof![
        any::<String>().prop_map(Literal::Text),
        any::<f64>()
            .prop_filter("finite", |n| n.is_finite())
            .prop_map(Literal::Number),
        any::<bool>().prop_map(Literal::Boolean),
    ]
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z_][a-zA-Z0-9_.-]{0,8}", any::<String>()]
}

fn test() -> impl Strategy<Value = Test> {
    prop_oneof![
        prop::collection::vec(any::<String>(), 1..4).prop_map(Test::Label),
        key().prop_map(Test::Exists),
        (key(), any::<String>()).prop_map(|(key, item)| Test::Has { key, item }),
        (key(), prop::collection::vec(literal(), 1..4))
            .prop_map(|(key, values)| Test::In { key, values }),
        (key(), comparison(), literal()).prop_map(|(key, comparison, value)| Test::Compare {
            key,
            comparison,
            value
        }),
        (comparison(), 0..=Unit::ONE.bits()).prop_map(|(comparison, bits)| Test::Confidence {
            comparison,
            value: Unit::from_bits(bits).expect("in range"),
        }),
    ]
}

/// Expressions in the form that the parser gives: no `And` directly in an `And`, nor `Or` in `Or`.
fn expression() -> impl Strategy<Value = Expression> {
    let leaf = test().prop_map(Expression::Test);
    leaf.prop_recursive(4, 12, 3, |inner| {
        let flat = |is_same: fn(&Expression) -> bool| {
            let part = inner
                .clone()
                .prop_filter("nested in its own kind", move |part| !is_same(part));
            prop::collection::vec(part, 2..4)
        };
        prop_oneof![
            flat(|part| matches!(part, Expression::And(_))).prop_map(Expression::And),
            flat(|part| matches!(part, Expression::Or(_))).prop_map(Expression::Or),
            inner
                .clone()
                .prop_map(|part| Expression::Not(Box::new(part))),
        ]
    })
}

proptest! {
    #[test]
    fn rendered_filters_parse_to_themselves(expression in expression()) {
        let filter = Filter { expression };
        let text = filter.to_string();
        prop_assume!(text.len() <= FILTER_BYTES_MAX);
        prop_assert_eq!(Filter::parse(&text), Ok(filter));
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        let _ = Filter::parse(&text);
    }

    /// Texts made of the grammar's own words reach deeper than random ones.
    #[test]
    fn no_soup_of_tokens_makes_it_panic(words in prop::collection::vec(prop::sample::select(vec![
        "label", "property", "confidence", "exists", "and", "or", "not", "in", "has", "true", ".",
        "(", ")", ",", "=", "!=", "<=", ">", "'a'", "\"é", "1", "-", "1e", "0.5", "\\", "'", "x", "→",
    ]), 0..40), spaced in any::<bool>()) {
        let text = words.join(if spaced { " " } else { "" });
        match Filter::parse(&text) {
            Ok(filter) => prop_assert_eq!(Filter::parse(&filter.to_string()), Ok(filter)),
            Err(error) => prop_assert!(error.position <= text.len()),
        }
    }
}
