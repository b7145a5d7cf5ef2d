//! The log: text for people or one JSON object per line, on standard error.
//!
//! Messages are constant text; data goes into fields that are named as the metric labels are.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::settings::LogFormat;

/// Why the log cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is not one, and not a list of directives either.
    #[error(
        "--log-level `{level}` cannot be used: {source}; expected error, warn, info, debug or trace, \
         or directives such as `info,tenure::election=debug`"
    )]
    Level {
        /// What was given.
        level: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Something else in this process has taken the log.
    #[error("the log was started twice in this process")]
    Started,
}

/// Starts the log of this process.
///
/// # Errors
/// [`LogError`] if `level` cannot be understood, or on a second call.
pub fn start(format: LogFormat, level: &str) -> Result<(), LogError> {
    let filter = filter(level)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).try_init(),
    };
    started.map_err(|_| LogError::Started)
}

/// What the client of the API server logs as a warning is a whole answer that it cannot read: users' objects, their Secrets
/// included. Everything that matters of it is an error as well, and said by whoever asked.
const CLIENT: &str = "kube_client::client";

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let filter =
        EnvFilter::builder().parse(level).map_err(|source| LogError::Level { level: level.to_owned(), source })?;
    // Whoever names it wants to see it.
    if level.contains(CLIENT) {
        return Ok(filter);
    }
    let quiet =
        format!("{CLIENT}=error").parse().map_err(|source| LogError::Level { level: level.to_owned(), source })?;
    Ok(filter.add_directive(quiet))
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn a_level_that_is_none_is_refused_with_the_levels_there_are() {
        let error = filter("info,tenure=loud").expect_err("loud is no level");
        let text = error.to_string();
        assert!(text.contains("`info,tenure=loud`") && text.contains("expected error, warn, info, debug"), "{text}");
        assert!(filter("info,tenure::election=debug").is_ok());
    }

    /// Whether a warning of the client comes through at this level.
    fn warns(level: &str) -> bool {
        let subscriber = tracing_subscriber::registry().with(filter(level).expect("it is a level"));
        tracing::subscriber::with_default(
            subscriber,
            || tracing::enabled!(target: "kube_client::client", tracing::Level::WARN),
        )
    }

    #[test]
    fn an_answer_that_cannot_be_read_is_not_logged_with_all_that_is_in_it() {
        for level in ["warn", "info", "debug", "trace", "info,tenure=debug", "info,kube_client=debug"] {
            assert!(!warns(level), "{level}");
        }
        assert!(warns("info,kube_client::client=debug"), "but for those who ask for it");
    }
}
