//! What a replica proves its identity with, loaded anew before it expires.
//!
//! kube loads a client certificate once, when its client is built, and says until when it holds; nobody asks. A replica
//! runs for months: what came from files is read again every minute, what came from an exec plugin is asked for before
//! its time is up, and both at once when the API server says 401. Loading happens beside the requests. A request waits
//! for it only while there is nothing valid to send; and when loading fails it goes out with what there is, for it is the
//! API server's clock that counts.

use std::{
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use kube::{
    Config,
    client::ConfigExt,
    config::{AuthInfo, ExecConfig},
};
use tokio::sync::watch;

use super::{
    CONNECT_TIMEOUT, ConnectError, plugin,
    transport::{self, MakePool},
};
use crate::clock::{self, BootTime, SharedClock};

/// Credentials are loaded anew so long before they expire, but not in the first four fifths of their life.
const RENEW_AHEAD: SignedDuration = SignedDuration::from_secs(60);

/// Files with a client certificate are read again this often, as kube reads those with a token.
const FILES_AGAIN: Duration = Duration::from_mins(1);

/// Between two loads there is at least this: every request may be answered by a 401.
const RELOAD_PAUSE: Duration = Duration::from_secs(10);

/// A request that has nothing valid to send waits for the load at most this long, and then goes out as it is.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// The credentials of one API server, and how to connect with them.
pub(super) struct Credentials {
    config: Config,
    clock: SharedClock,
    source: Source,
    state: Mutex<State>,
    loading: watch::Sender<bool>,
}

/// Where credentials come from, as far as they can change.
enum Source {
    /// Written down in the configuration, or kept up to date by kube.
    Fixed,
    /// Files with a client certificate and its key.
    Files,
    /// A program that is asked for them.
    Plugin(Box<ExecConfig>),
}

struct State {
    loaded: Loaded,
    /// Since when and until when they hold, by the wall clock, if that is known.
    lifetime: Option<(Timestamp, Timestamp)>,
    /// What the files contained.
    files: Vec<u8>,
    tried: BootTime,
}

/// How to connect. The number grows whenever connections are to be made anew.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) number: u64,
    pub(super) make: MakePool,
}

struct Fresh {
    make: MakePool,
    lifetime: Option<(Timestamp, Timestamp)>,
    files: Vec<u8>,
}

impl Source {
    fn of(auth: &AuthInfo) -> Self {
        // kube takes the first of these that is there.
        let kept_by_kube = auth.auth_provider.is_some()
            || auth.username.is_some() && auth.password.is_some()
            || auth.token.is_some()
            || auth.token_file.is_some();
        match &auth.exec {
            Some(exec) if !kept_by_kube => Self::Plugin(Box::new(exec.clone())),
            _ if auth.client_certificate.is_some() || auth.client_key.is_some() => Self::Files,
            _ => Self::Fixed,
        }
    }
}

impl Credentials {
    /// Loads for the first time. Blocks for as long as a plugin takes, at most [`plugin::DEADLINE`].
    pub(super) fn load(config: Config, clock: SharedClock) -> Result<Self, ConnectError> {
        let source = Source::of(&config.auth_info);
        let fresh = load(&config, &source, &clock)?;
        let state = State {
            loaded: Loaded { number: 0, make: fresh.make },
            lifetime: fresh.lifetime,
            files: fresh.files,
            tried: clock.boot(),
        };
        Ok(Self { config, source, state: Mutex::new(state), loading: watch::channel(false).0, clock })
    }

    pub(super) fn loaded(&self) -> Loaded {
        self.state().loaded.clone()
    }

    /// Has all connections made anew, for requests that are yet to come.
    pub(super) fn renew(&self) {
        self.state().loaded.number += 1;
    }

    /// The same, unless that has happened since the connections with this number were made: many requests may fail at once.
    pub(super) fn renew_after(&self, number: u64) {
        let mut state = self.state();
        if state.loaded.number == number {
            state.loaded.number += 1;
        }
    }

    /// Sees to it that there is something valid to send, if that can be had.
    pub(super) async fn ready(self: &Arc<Self>) {
        let (due, expired) = self.look();
        if due {
            self.load_anew();
        }
        if expired {
            let mut loading = self.loading.subscribe();
            let loaded = clock::timeout(&*self.clock, WAIT_MAX, loading.wait_for(|loading| !loading)).await;
            if loaded.is_err() {
                tracing::debug!("The credentials for the API server have expired, and new ones are slow to come");
            }
        }
    }

    /// The API server takes these credentials no longer, or not yet.
    pub(super) fn refused(self: &Arc<Self>) {
        if !matches!(self.source, Source::Fixed) {
            self.load_anew();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is time to load, and whether what there is has expired.
    fn look(&self) -> (bool, bool) {
        let state = self.state();
        let wall = self.clock.wall();
        let expiry = state.lifetime.map(|(since, until)| {
            let ahead = RENEW_AHEAD.min(until.duration_since(since) / 5);
            (until.duration_since(wall) <= ahead, wall >= until)
        });
        let read_again = matches!(self.source, Source::Files) && self.clock.boot() >= state.tried + FILES_AGAIN;
        let (due, expired) = expiry.unwrap_or_default();
        (due || read_again, expired)
    }

    /// Loads beside the requests, unless that is going on or was tried a moment ago.
    fn load_anew(self: &Arc<Self>) {
        {
            let mut state = self.state();
            let now = self.clock.boot();
            if *self.loading.borrow() || now < state.tried + RELOAD_PAUSE {
                return;
            }
            state.tried = now;
            self.loading.send_replace(true);
        }
        let credentials = self.clone();
        // It ends by itself: the files are small, and a plugin has a deadline. Whoever needs the outcome waits for it.
        tokio::task::spawn_blocking(move || {
            match load(&credentials.config, &credentials.source, &credentials.clock) {
                Ok(fresh) => credentials.take_up(fresh),
                Err(error) => tracing::warn!(%error, "The credentials for the API server cannot be loaded anew"),
            }
            credentials.loading.send_replace(false);
        });
    }

    fn take_up(&self, fresh: Fresh) {
        let mut state = self.state();
        if matches!(self.source, Source::Files) && state.files == fresh.files {
            return;
        }
        state.loaded = Loaded { number: state.loaded.number + 1, make: fresh.make };
        state.lifetime = fresh.lifetime;
        state.files = fresh.files;
        tracing::info!("The credentials for the API server were loaded anew");
    }
}

fn load(config: &Config, source: &Source, clock: &SharedClock) -> Result<Fresh, ConnectError> {
    let mut config = config.clone();
    let (mut lifetime, mut files) = (None, Vec::new());
    match source {
        Source::Fixed => {}
        Source::Files => {
            for path in [&config.auth_info.client_certificate, &config.auth_info.client_key].into_iter().flatten() {
                // What cannot be read is reported below, in kube's words.
                files.extend(fs::read(path).unwrap_or_default());
            }
        }
        Source::Plugin(exec) => {
            let since = clock.wall();
            let given = plugin::run(exec, clock)?;
            lifetime = given.until.map(|until| (since, until));
            given.put_into(&mut config.auth_info);
        }
    }
    let failed = |error| ConnectError::Config(Box::new(error));
    let https = config.rustls_https_connector_with_connector(transport::tcp()).map_err(failed)?;
    let mut connector = hyper_timeout::TimeoutConnector::new(https);
    connector.set_connect_timeout(Some(config.connect_timeout.map_or(CONNECT_TIMEOUT, |set| set.min(CONNECT_TIMEOUT))));
    let auth = config.auth_layer().map_err(failed)?;
    Ok(Fresh { make: transport::pools(connector, auth), lifetime, files })
}
