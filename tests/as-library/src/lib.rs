//! A service that embeds Tenure: it names every type it holds, so that this stops compiling when one of them goes away.

use k8s_openapi::api::coordination::v1::Lease;
use tenure::election::{Leadership, Standing, Term, TermEnded};

/// Work that may be done by one replica at a time.
pub struct Service {
    pub leadership: Leadership,
    pub lease: Lease,
}

impl Service {
    pub async fn next_term(&self) -> Option<Term> {
        self.leadership.leading().await
    }

    pub async fn once(&self, term: &Term) -> Result<u64, TermEnded> {
        term.run(async { term.token() }).await
    }

    pub fn describe(&self) -> String {
        let name = self.lease.metadata.name.as_deref().unwrap_or("unnamed");
        match &*self.leadership.watch().borrow() {
            Standing::Leading(term) => format!("{name}: leading with token {}", term.token()),
            Standing::Standby => format!("{name}: standby"),
            Standing::Stopped => format!("{name}: stopped"),
        }
    }
}

