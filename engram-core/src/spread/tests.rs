//! Tests of spreading.
