//! An error in one line, with its causes.
//!
//! Many errors name only what was attempted ("client error (Connect)"), and leave the reason ("Connection refused") to
//! their source. A person who reads a log or a status needs both.

use std::error::Error;

/// The error with its causes, as far as it does not name them itself.
pub(crate) fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("connecting")]
    struct Connecting(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("asking: connecting")]
    struct Asking(#[source] Connecting);

    #[test]
    fn each_cause_is_named_once() {
        let error = Asking(Connecting(io::Error::other("refused")));
        assert_eq!(explain(&error), "asking: connecting: refused");
    }
}
