//! The custom resources and what they share: types only.

#[allow(unreachable_pub, reason = "the schema derive makes public twins of the types inside a function")]
mod action;

pub use action::{
    BODY_BYTES_MAX, BasicAuth, HttpAction, HttpAuth, HttpHeader, HttpMethod, HttpTls, SecretKeyRef, ValueFrom,
};
