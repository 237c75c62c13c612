//! Values that GraphQL has no type for.

use async_graphql::{InputValueError, InputValueResult, Number, Scalar, ScalarType, Value};
use nexus_common::model::Timestamp;

/// An instant: RFC 3339, such as `2025-07-18T20:42:34Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Time(pub(super) Timestamp);

#[Scalar(name = "DateTime", specified_by_url = "https://scalars.graphql.org/andimarek/date-time")]
impl ScalarType for Time {
    fn parse(value: Value) -> InputValueResult<Self> {
        let Value::String(text) = &value else { return Err(InputValueError::expected_type(value)) };
        let short: String = text.chars().take(64).collect();
        text.parse().map(Self).map_err(|_| {
            InputValueError::custom(format!(
                "{short:?} is not an RFC 3339 time such as 2025-07-18T20:42:34Z"
            ))
        })
    }

    fn to_value(&self) -> Value {
        Value::String(self.0.to_string())
    }
}

/// A whole number from 0 up: samples and bytes may be more than an `Int` (32 bits) holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Count(pub(super) u64);

#[Scalar]
impl ScalarType for Count {
    fn parse(value: Value) -> InputValueResult<Self> {
        match &value {
            Value::Number(number) if number.as_u64().is_some() => {
                Ok(Self(number.as_u64().unwrap_or_default()))
            }
            _ => Err(InputValueError::expected_type(value)),
        }
    }

    fn to_value(&self) -> Value {
        Value::Number(Number::from(self.0))
    }
}

impl From<u64> for Count {
    fn from(count: u64) -> Self {
        Self(count)
    }
}

impl From<usize> for Count {
    fn from(count: usize) -> Self {
        Self(count as u64)
    }
}
