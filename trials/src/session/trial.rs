//! One trial: from a calm state, through a strike at a chosen point, back to a calm state.

use std::{os::unix::process::ExitStatusExt, time::Duration};

use rand::Rng;
use rustix::process::Signal;

use super::{LEASE, LEAVE_LIMIT, Leader, Session, SessionError};
use crate::{
    aim::{Aim, Disturbance},
    clock::At,
    judge::{Family, Freeze, Trial, Window},
    wait,
};

/// How long a run may take to come to the point that is aimed at: a few periods, with every answer delayed.
const AIM_LIMIT: Duration = Duration::from_secs(15);
/// How often a trial is begun again because the leader did not come to where it was to be struck, or no longer led there.
const AIM_TRIES: u32 = 10;
/// How long a successor may take. Beyond it something is broken, and the trials cannot go on.
const SUCCESSOR_LIMIT: Duration = Duration::from_secs(30);

/// What was drawn for a trial.
#[derive(Debug)]
struct Plan {
    number: u32,
    window: Window,
    job: String,
    disturbance: Disturbance,
    /// How long the calm lasts before the first fault.
    calm: Duration,
    /// How long after the signal the held request goes on, in a family that does not wait for the successor.
    release_after: Duration,
    /// Whether the held request goes on only when the successor leads.
    release_late: bool,
    /// How long a freeze lasts.
    freeze: Duration,
    /// When SIGTERM is sent into the freeze, if it is.
    term_into_freeze: Option<Duration>,
}

/// A leader that is held at the point that was aimed at.
struct Held {
    leader: Leader,
    aim: Aim,
    armed: At,
}

impl Session {
    fn draw(&mut self, number: u32) -> Plan {
        let random = &mut self.random;
        let freeze = LEASE.mul_f64(random.random_range(1.2..=3.0));
        let into_freeze = freeze.mul_f64(random.random_range(0.1..0.9));
        let windows = u32::try_from(Window::ALL.len()).expect("there are four windows");
        Plan {
            number,
            window: Window::ALL[(number % windows) as usize],
            job: self.observers.jobs[random.random_range(0..self.observers.jobs.len())].name.clone(),
            disturbance: Disturbance::draw(random),
            calm: Duration::from_millis(random.random_range(500..2000)),
            release_after: Duration::from_millis(random.random_range(0..500)),
            release_late: self.settings.family != Family::Term && random.random(),
            freeze,
            // Every second round of the windows, so that each window is frozen both ways.
            term_into_freeze: ((number - 1) / windows).is_multiple_of(2).then_some(into_freeze),
        }
    }

    pub(super) async fn run_trial(&mut self, number: u32) -> Result<Trial, SessionError> {
        let plan = self.draw(number);
        self.note(&format!("{} {plan:?}", self.settings.family));
        let Held { leader, aim, armed } = self.hold_leader(&plan).await?;
        let (victim, victim_address) = {
            let replica = &self.replicas[leader.place];
            (replica.identity.clone(), replica.address)
        };
        let struck = At::now();
        let freeze = match self.settings.family {
            Family::Kill => self.kill(&plan, leader, &aim).await?,
            Family::Term => self.terminate(&plan, leader, &aim).await?,
            Family::Stop => Some(self.freeze(&plan, leader, &aim).await?),
            other => return Err(SessionError::NotOfProcesses(other)),
        };
        let taken_over = self.successor(leader).await?;
        aim.release();
        self.cluster.sandbox.faults().clear();
        self.note(&format!("successor first seen {:?} after the signal", taken_over.since(struck)));
        self.calm().await?;
        let (calm, token, window) = (At::now(), leader.token, Some(plan.window));
        Ok(Trial {
            number,
            victim,
            victim_address,
            token,
            window,
            armed,
            struck,
            calm,
            freeze,
            outage: None,
            taken_over: Some(taken_over),
            limit: None,
            cut: Vec::new(),
            wrong_clock: None,
            pace: None,
        })
    }

    /// Puts the faults of the trial in force and waits until the leader is held where it is to be struck.
    async fn hold_leader(&mut self, plan: &Plan) -> Result<Held, SessionError> {
        let mut first_armed = None;
        for _ in 0..AIM_TRIES {
            let leader = self.calm().await?;
            tokio::time::sleep(plan.calm).await;
            let armed = *first_armed.get_or_insert_with(At::now);
            let (identity, address) =
                (self.replicas[leader.place].identity.clone(), self.replicas[leader.place].address);
            let sandbox = &self.cluster.sandbox;
            // The aim comes first: where both befall one request, it is held and then lost, not lost without being held.
            let mut aim = Aim::take(sandbox, &self.observers.ledger, plan.window, &plan.job, &identity, address);
            plan.disturbance.arm(sandbox, &identity, &mut self.random);
            let reached = wait::within("the leader is where it is to be struck", AIM_LIMIT, aim.reached()).await;
            match reached {
                Ok(()) if self.leader() == Some(leader) => return Ok(Held { leader, aim, armed }),
                Ok(()) => self.note("the leader changed before it was struck; begun again"),
                Err(overdue) => self.note(&format!("{overdue}; begun again")),
            }
            aim.release();
            self.cluster.sandbox.faults().clear();
        }
        Err(SessionError::Unsteady(plan.number))
    }

    fn signal(&self, leader: Leader, signal: Signal, name: &str) -> Result<(), SessionError> {
        let replica = &self.replicas[leader.place];
        let at = At::now();
        replica.signal(signal)?;
        let pid = replica.pid().unwrap_or_default();
        self.observers.journal.note(at, &format!("trial {}: {name} {} pid {pid}", self.trial, replica.identity));
        Ok(())
    }

    async fn ended(&mut self, leader: Leader) -> Result<(), SessionError> {
        let replica = &mut self.replicas[leader.place];
        let status = replica.ended(LEAVE_LIMIT).await?;
        let what = format!("{} ended: {status}", replica.identity);
        self.note(&what);
        if !status.success() && status.signal() != Some(Signal::KILL.as_raw()) {
            self.bad_ends.push(format!("trial {}: {what}", self.trial));
        }
        Ok(())
    }

    /// Kills the leader. The request that was held goes on before or after the successor leads: the network may still
    /// deliver what a dead process sent.
    async fn kill(&mut self, plan: &Plan, leader: Leader, aim: &Aim) -> Result<Option<Freeze>, SessionError> {
        self.signal(leader, Signal::KILL, "KILL")?;
        self.ended(leader).await?;
        if plan.release_late {
            self.successor(leader).await?;
            tokio::time::sleep(plan.release_after).await;
        }
        aim.release();
        self.start_replica(leader.place)?;
        Ok(None)
    }

    /// Asks the leader to leave. What was held goes on soon after: a planned hand-over is judged with an API server and a
    /// target that answer.
    async fn terminate(&mut self, plan: &Plan, leader: Leader, aim: &Aim) -> Result<Option<Freeze>, SessionError> {
        self.signal(leader, Signal::TERM, "TERM")?;
        tokio::time::sleep(plan.release_after).await;
        aim.release();
        self.ended(leader).await?;
        self.start_replica(leader.place)?;
        Ok(None)
    }

    async fn freeze(&mut self, plan: &Plan, leader: Leader, aim: &Aim) -> Result<Freeze, SessionError> {
        self.signal(leader, Signal::STOP, "STOP")?;
        let stop = At::now();
        if !plan.release_late {
            aim.release();
        }
        if let Some(before) = plan.term_into_freeze {
            tokio::time::sleep(before).await;
            self.signal(leader, Signal::TERM, "TERM into the freeze")?;
            tokio::time::sleep(plan.freeze.saturating_sub(before)).await;
        } else {
            tokio::time::sleep(plan.freeze).await;
        }
        let cont = At::now();
        self.signal(leader, Signal::CONT, "CONT")?;
        let thawed = At::now();
        if plan.release_late {
            self.successor(leader).await?;
            tokio::time::sleep(plan.release_after).await;
        }
        aim.release();
        if plan.term_into_freeze.is_some() {
            self.ended(leader).await?;
        }
        Ok(Freeze { stop, cont, thawed })
    }

    /// Waits for a higher token than the leader's, and says when it was first seen.
    async fn successor(&self, leader: Leader) -> Result<At, SessionError> {
        let look = || {
            self.observers
                .probe
                .with_log(|log| log.terms().find(|term| term.token > leader.token).map(|term| term.first))
        };
        wait::until("a successor leads", SUCCESSOR_LIMIT, look).await.map_err(self.overdue())
    }
}
