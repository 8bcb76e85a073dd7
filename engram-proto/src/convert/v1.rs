//! `engram.v1` <-> core types: what the public API shows of memories and spaces.

use engram_core::types::{Decay, Memory, Metric, PropertyValue, Quantization};

use super::DecodeError;
use crate::v1 as api;

impl From<&PropertyValue> for api::PropertyValue {
    fn from(value: &PropertyValue) -> Self {
        use api::property_value::Value;
        let value = match value {
            PropertyValue::Text(text) => Value::Text(text.clone()),
            PropertyValue::Number(number) => Value::Number(*number),
            PropertyValue::Boolean(boolean) => Value::Boolean(*boolean),
            PropertyValue::List(items) => Value::List(api::TextList {
                items: items.clone(),
            }),
        };
        Self { value: Some(value) }
    }
}

impl TryFrom<api::PropertyValue> for PropertyValue {
    type Error = DecodeError;

    fn try_from(message: api::PropertyValue) -> Result<Self, DecodeError> {
        use api::property_value::Value;
        Ok(
            match message
                .value
                .ok_or(DecodeError::Missing("a property's value"))?
            {
                Value::Text(text) => Self::Text(text),
                Value::Number(number) => Self::Number(number),
                Value::Boolean(boolean) => Self::Boolean(boolean),
                Value::List(list) => Self::List(list.items),
            },
        )
    }
}

/// A memory as the API shows it.
#[must_use]
pub fn memory_to_api(memory: &Memory, embedding: Option<Vec<f32>>) -> api::Memory {
    api::Memory {
        id: memory.id.as_str().to_owned(),
        content: memory.content.clone(),
        embedding: embedding.unwrap_or_default(),
        embedding_model: memory.embedding_model.clone(),
        labels: memory.labels.iter().cloned().collect(),
        properties: memory
            .properties
            .iter()
            .map(|(key, value)| (key.clone(), value.into()))
            .collect(),
        confidence: Some(memory.confidence.to_f64()),
        version: memory.version.0,
        created_millis: memory.created.millis() as i64,
        updated_millis: memory.updated.millis() as i64,
    }
}

impl From<Metric> for api::Metric {
    fn from(metric: Metric) -> Self {
        match metric {
            Metric::Cosine => Self::Cosine,
            Metric::Dot => Self::Dot,
            Metric::L2 => Self::L2,
        }
    }
}

/// The metric that a request names; unspecified is cosine.
///
/// # Errors
/// When it is of no known kind.
pub fn metric_from_api(metric: i32) -> Result<Metric, DecodeError> {
    Ok(match api::Metric::try_from(metric) {
        Ok(api::Metric::Unspecified | api::Metric::Cosine) => Metric::Cosine,
        Ok(api::Metric::Dot) => Metric::Dot,
        Ok(api::Metric::L2) => Metric::L2,
        Err(_) => return Err(DecodeError::NotUnderstood("the metric")),
    })
}

impl From<Quantization> for api::Quantization {
    fn from(quantization: Quantization) -> Self {
        match quantization {
            Quantization::None => Self::Unspecified,
            Quantization::Int8 => Self::Int8,
            Quantization::Int8OnDisk => Self::Int8OnDisk,
        }
    }
}

/// The quantization that a request names; unspecified is none.
///
/// # Errors
/// When it is of no known kind.
pub fn quantization_from_api(quantization: i32) -> Result<Quantization, DecodeError> {
    Ok(match api::Quantization::try_from(quantization) {
        Ok(api::Quantization::Unspecified) => Quantization::None,
        Ok(api::Quantization::Int8) => Quantization::Int8,
        Ok(api::Quantization::Int8OnDisk) => Quantization::Int8OnDisk,
        Err(_) => return Err(DecodeError::NotUnderstood("the quantization")),
    })
}

/// Greatest exponent of a power-law decay.
pub const EXPONENT_MAX: f64 = 1_000.0;

/// The decay that a request names; none is no decay.
///
/// # Errors
/// When a parameter is out of its range.
pub fn decay_from_api(decay: Option<api::Decay>) -> Result<Decay, DecodeError> {
    use api::decay::Law;
    let Some(decay) = decay else {
        return Ok(Decay::None);
    };
    let positive = |what, actual: u64| match actual {
        0 => Err(DecodeError::OutOfRange { what, actual }),
        _ => Ok(actual),
    };
    Ok(match decay.law {
        None => Decay::None,
        Some(Law::Exponential(law)) => Decay::Exponential {
            half_life_millis: positive("half_life_millis", law.half_life_millis)?,
        },
        Some(Law::PowerLaw(law)) => {
            let allowed = law.exponent > 0.0 && law.exponent <= EXPONENT_MAX;
            if !allowed {
                let actual = law.exponent as u64;
                return Err(DecodeError::OutOfRange {
                    what: "exponent",
                    actual,
                });
            }
            Decay::PowerLaw {
                scale_millis: positive("scale_millis", law.scale_millis)?,
                exponent_thousandths: ((law.exponent * 1_000.0).round() as u32).max(1),
            }
        }
    })
}

/// The API's form of a decay.
#[must_use]
pub fn decay_to_api(decay: Decay) -> Option<api::Decay> {
    use api::decay::{Exponential, Law, PowerLaw};
    let law = match decay {
        Decay::None => return None,
        Decay::Exponential { half_life_millis } => {
            Law::Exponential(Exponential { half_life_millis })
        }
        Decay::PowerLaw {
            scale_millis,
            exponent_thousandths,
        } => Law::PowerLaw(PowerLaw {
            scale_millis,
            exponent: f64::from(exponent_thousandths) / 1_000.0,
        }),
    };
    Some(api::Decay { law: Some(law) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decays_survive_the_api(scale in 1..u64::MAX, exponent_thousandths in 1u32..=1_000_000) {
            for decay in [
                Decay::None,
                Decay::Exponential { half_life_millis: scale },
                Decay::PowerLaw { scale_millis: scale, exponent_thousandths },
            ] {
                prop_assert_eq!(decay_from_api(decay_to_api(decay)), Ok(decay));
            }
        }
    }

    #[test]
    fn impossible_decays_are_refused() {
        use api::decay::{Exponential, Law, PowerLaw};
        let power = |scale_millis, exponent| {
            Law::PowerLaw(PowerLaw {
                scale_millis,
                exponent,
            })
        };
        for law in [
            Law::Exponential(Exponential {
                half_life_millis: 0,
            }),
            power(0, 1.0),
            power(1, 0.0),
            power(1, f64::NAN),
            power(1, 1e9),
        ] {
            assert!(
                decay_from_api(Some(api::Decay { law: Some(law) })).is_err(),
                "{law:?}"
            );
        }
    }

    #[test]
    fn metrics_survive_the_api() {
        for metric in [Metric::Cosine, Metric::Dot, Metric::L2] {
            assert_eq!(
                metric_from_api(api::Metric::from(metric).into()),
                Ok(metric)
            );
        }
        for quantization in [
            Quantization::None,
            Quantization::Int8,
            Quantization::Int8OnDisk,
        ] {
            let api = api::Quantization::from(quantization);
            assert_eq!(quantization_from_api(api.into()), Ok(quantization));
        }
        assert!(quantization_from_api(9).is_err());
        assert_eq!(metric_from_api(0), Ok(Metric::Cosine));
        assert!(metric_from_api(9).is_err());
    }
}
