//! Request bodies: read within bounds, parsed, and taken apart field by field so that every fault names its field.

pub(crate) mod body;
pub(crate) mod fields;
pub(crate) mod query;
pub(crate) mod rules;
