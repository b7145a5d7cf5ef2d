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

/// An error of a Kubernetes client: the API server's own words, with what to do about them, or why there was no answer.
/// kube prints an answer as the structure that it was read into.
pub(crate) fn explain_answer(error: &kube::Error) -> String {
    let kube::Error::Api(status) = error else { return explain(error) };
    match status.code {
        401 => format!("{}; check the token or certificate that this replica uses", status.message),
        403 => format!("{}; grant this to the account of this replica, by a role and its binding", status.message),
        _ => status.message.clone(),
    }
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
