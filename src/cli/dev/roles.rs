//! Who is leader and who is standby, asked from each replica's admin port, printed when it changes.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    console::Console,
    replicas::{Replica, Replicas},
};
use crate::{
    clock::{self, SharedClock},
    tasks::Tasks,
};

/// A view of the roles of all replicas.
#[derive(Debug)]
pub(super) struct Roles(watch::Receiver<BTreeMap<String, Seen>>);

/// One replica as it was last seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    pid: Option<u32>,
    role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// There is no process.
    Gone,
    /// There is a process, which does not answer: it starts, or it is frozen.
    Silent,
    /// It waits for the API server.
    Waiting,
    Leader {
        token: u64,
    },
    Standby,
    /// It has been asked to stop.
    Stopping,
}

/// How often each replica is asked.
const PERIOD: Duration = Duration::from_millis(200);

/// A process that answers later than this is frozen, or as good as that.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// `/status` has less than one kilobyte.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What is read from `/status`.
#[derive(Debug, Deserialize)]
struct Status {
    pid: u32,
    stopping: bool,
    election: Election,
}

#[derive(Debug, Deserialize)]
struct Election {
    token: Option<u64>,
}

type Http = Client<HttpConnector, Empty<Bytes>>;

impl Roles {
    /// Starts to ask, as a task of `tasks`, until `stop`.
    pub(super) fn start(
        replicas: Arc<Replicas>,
        console: Console,
        clock: SharedClock,
        tasks: &Tasks,
        stop: CancellationToken,
    ) -> Self {
        let (seen, view) = watch::channel(BTreeMap::new());
        let http = Client::builder(TokioExecutor::new()).build_http();
        let asking = async move {
            loop {
                for replica in replicas.iter() {
                    let now = look(&http, replica, &clock).await;
                    note(&seen, &console, replica, now);
                }
                clock::sleep(&*clock, PERIOD).await;
            }
        };
        let until_stop = async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = asking => {}
            }
        };
        tasks.spawn("roles", until_stop).detach();
        Self(view)
    }

    /// Waits until every replica is ready and one of them leads.
    pub(super) async fn settled(&mut self) {
        let settled = |seen: &BTreeMap<String, Seen>| {
            let in_place = |seen: &Seen| matches!(seen.role, Role::Leader { .. } | Role::Standby);
            let leads = |seen: &Seen| matches!(seen.role, Role::Leader { .. });
            !seen.is_empty() && seen.values().all(in_place) && seen.values().any(leads)
        };
        if self.0.wait_for(settled).await.is_err() {
            // The task has been stopped; nothing will settle any more.
            std::future::pending::<()>().await;
        }
    }

    /// The leader's process id, for people.
    pub(super) fn leader_pid(&self) -> String {
        let seen = self.0.borrow();
        let leader = seen.values().find(|seen| matches!(seen.role, Role::Leader { .. }));
        leader.and_then(|leader| leader.pid).map_or_else(|| "PID".to_owned(), |pid| pid.to_string())
    }
}

fn note(seen: &watch::Sender<BTreeMap<String, Seen>>, console: &Console, replica: &Replica, now: Seen) {
    let before = seen.borrow().get(&replica.name).copied();
    if before == Some(now) {
        return;
    }
    // The end of a process is told by who has waited for it; and one that starts is told when it answers.
    let starts = now.role == Role::Silent && before.is_none_or(|before| before.pid != now.pid);
    if now.role != Role::Gone && !starts {
        let pid = now.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let (name, admin, role) = (&replica.name, replica.admin, now.role);
        console.say(format_args!("{name}  pid {pid:<8} http://{admin}  {role}"));
    }
    seen.send_modify(|seen| {
        seen.insert(replica.name.clone(), now);
    });
}

async fn look(http: &Http, replica: &Replica, clock: &SharedClock) -> Seen {
    let pid = *replica.pid.borrow();
    if pid.is_none() {
        return Seen { pid, role: Role::Gone };
    }
    let answer = clock::timeout(&**clock, ASK_TIMEOUT, ask(http, replica.admin)).await.ok().flatten();
    let role = match answer {
        // Another process has its address, or an older one has not quite gone.
        Some((status, _)) if Some(status.pid) != pid => Role::Silent,
        Some((status, _)) if status.stopping => Role::Stopping,
        Some((_, false)) => Role::Waiting,
        Some((Status { election: Election { token: Some(token) }, .. }, true)) => Role::Leader { token },
        Some((_, true)) => Role::Standby,
        None => Role::Silent,
    };
    Seen { pid, role }
}

/// The status, and whether the replica is ready.
async fn ask(http: &Http, admin: SocketAddr) -> Option<(Status, bool)> {
    let get = async |path: &str| http.get(format!("http://{admin}{path}").parse().ok()?).await.ok();
    let ready = get("/readyz").await?.status().is_success();
    let body = Limited::new(get("/status").await?.into_body(), ANSWER_BYTES_MAX).collect().await.ok()?.to_bytes();
    Some((serde_json::from_slice(&body).ok()?, ready))
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => formatter.write_str("is gone"),
            Self::Silent => formatter.write_str("does not answer"),
            Self::Waiting => formatter.write_str("waits for the API server"),
            Self::Leader { token } => write!(formatter, "LEADER, token {token}"),
            Self::Standby => formatter.write_str("standby"),
            Self::Stopping => formatter.write_str("stops"),
        }
    }
}
