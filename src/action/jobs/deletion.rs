//! What becomes of a Job that is to make room for a newer slot: whose deletion it was decides what is certain.

use futures::future::BoxFuture;

use super::{
    super::{AttemptEnd, EndKind},
    end, replaced,
    template::Verdict,
};

/// The deletion of a Job that is to make room.
pub(super) enum Deletion<'a> {
    NotAsked,
    UnderWay(BoxFuture<'a, bool>),
    /// The API server has taken it: the Job goes when its pods are gone.
    Accepted,
    /// The Job was gone already, by somebody else's hand, who may have left its pods behind.
    NotOurs,
}

impl Deletion<'_> {
    pub(super) const fn is_not_asked(&self) -> bool {
        matches!(self, Self::NotAsked)
    }

    /// Whether it was taken, when that is known.
    pub(super) async fn answer(&mut self) -> bool {
        match self {
            Self::UnderWay(answer) => answer.await,
            _ => std::future::pending().await,
        }
    }

    /// A Job that is being deleted may count the pods that are stopped for it as failed ones: that is no end of its own.
    pub(super) fn lets_stand(&self, verdict: Option<Verdict>) -> Option<Verdict> {
        verdict.filter(|verdict| !matches!(self, Self::Accepted) || verdict.kind == EndKind::JobSucceeded)
    }

    /// How an attempt ended whose Job is gone and had not ended by itself.
    pub(super) fn end_of(&self, name: &str) -> AttemptEnd {
        match self {
            Self::Accepted => {
                let how = format!("and its Job {name} was deleted with its pods");
                end(EndKind::Replaced { certain: true }, replaced(&how))
            }
            Self::NotOurs | Self::UnderWay(_) => {
                let how = format!("but its Job {name} was deleted by somebody else; what it has done is not known");
                end(EndKind::Replaced { certain: false }, replaced(&how))
            }
            Self::NotAsked => {
                let message =
                    format!("the Job {name} was deleted before its end was seen; what it has done is not known");
                end(EndKind::JobGone, message)
            }
        }
    }
}
