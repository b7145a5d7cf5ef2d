//! Waiting for something that can be observed, with a deadline.

use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, sleep};

/// How often a condition is looked at. The instants that are judged are stamped where they happen, not here.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What was waited for did not happen.
#[derive(Debug, Error)]
#[error("waited {limit:?} in vain until {what}")]
pub struct Overdue {
    what: String,
    limit: Duration,
}

/// Waits until `look` finds something.
pub async fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T, Overdue> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(overdue(what, limit));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Waits for a future.
pub async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> Result<T, Overdue> {
    tokio::time::timeout(limit, future).await.map_err(|_| overdue(what, limit))
}

fn overdue(what: &str, limit: Duration) -> Overdue {
    Overdue { what: what.to_owned(), limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_never_happens_is_named_with_its_limit() {
        let error = until("pigs fly", Duration::from_millis(5), || None::<()>).await.unwrap_err();
        assert_eq!(error.to_string(), "waited 5ms in vain until pigs fly");
        assert_eq!(until("it is there", Duration::ZERO, || Some(3)).await.unwrap(), 3);
    }
}
