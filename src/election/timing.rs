//! The times of an election, and the formula that keeps two leaders apart.
//!
//! Only *rates* of clocks matter here, never what they show. Let every clock run wrong by at most ρ. A standby takes over no
//! earlier than one lease duration L after it **received** a record, on its own clock: at least `L/(1+ρ)` of true time after
//! the record was sent. A leader therefore counts from **before it sent** its last confirmed write, and stops when its own
//! clock, which may be slow, has shown `L·(1−ρ)/(1+ρ)`: at most `L/(1+ρ)` of true time. `stop` is subtracted from that, so
//! that what is running has really ended.

use std::time::Duration;

use crate::clock::BootTime;

/// ρ, in percent: the largest error of any clock's rate. Slewing by a time daemon reaches 8 %.
pub const CLOCK_RATE_ERROR_PERCENT: u32 = 10;

/// How long a leader may believe in a lease of duration `lease`, measured on its own clock from before the write was sent:
/// `L·(1−ρ)/(1+ρ)`.
pub const fn lease_end_after(lease: Duration) -> Duration {
    let nanos = lease.as_nanos() * (100 - CLOCK_RATE_ERROR_PERCENT) as u128 / (100 + CLOCK_RATE_ERROR_PERCENT) as u128;
    #[allow(clippy::cast_possible_truncation, reason = "the quotient is below the lease, which fits")]
    Duration::from_nanos(nanos as u64)
}

// The slowest leader's end is no later than the fastest standby's beginning:
// end/(1−ρ) ≤ L/(1+ρ), held here for the default lease, in integers, at compile time.
const _: () = {
    let lease = Duration::from_secs(15);
    let end = lease_end_after(lease).as_nanos();
    let rho = CLOCK_RATE_ERROR_PERCENT as u128;
    assert!(end * (100 + rho) <= lease.as_nanos() * (100 - rho), "two leaders could overlap");
    assert!((end + 1) * (100 + rho) > lease.as_nanos() * (100 - rho), "the formula gives away time");
};

/// The longest pause by which a standby's rank delays it after an expiry, so that the standbys do not all try at once.
pub const RANK_JITTER_MAX: Duration = Duration::from_millis(200);

/// The shortest deadline of one try; below it a healthy API server could miss it.
pub const TRY_DEADLINE_MIN: Duration = Duration::from_millis(100);

/// The shortest pause between two tries, however little remains and however fast the API server refuses.
pub const TRY_PAUSE_MIN: Duration = Duration::from_millis(100);

/// How late a renewal may be, at most, before a standby asks whether its watch has missed it; also how often it goes on
/// asking. Together with [`RANK_JITTER_MAX`] it leaves something of the second within which a leader is to be replaced.
pub const OVERDUE_MAX: Duration = Duration::from_millis(600);

/// The longest lease that can be asked for: one day. The field itself would take 68 years.
pub const LEASE_DURATION_MAX: Duration = Duration::from_hours(24);

/// The times of one election, checked: [`Timing::validity`] cannot overlap a successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    lease: Duration,
    validity: Duration,
    retry_period: Duration,
    foreign_grace: Duration,
}

/// Times as they were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimingRequest {
    /// How long a record keeps others away. Whole seconds: the field of the Lease is an integer.
    pub lease_duration: Duration,
    /// The latest end of a term after its last confirmed write; `None` is as late as the lease duration allows.
    pub renew_deadline: Option<Duration>,
    /// The pause after a failed try.
    pub retry_period: Duration,
    /// The time in which running gated work has really ended.
    pub stop_margin: Duration,
    /// What a holder that is not Tenure's gets besides, after its expiry and after its release: client-go's elector may work
    /// until 17 s after its last write of a lease of 15 s, and cancels its work only after it has released.
    pub foreign_grace: Duration,
}

/// Times that cannot be safe, or under which nobody could stay in office.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TimingError {
    /// The Lease holds whole seconds.
    #[error("lease duration {0:?}: expected whole seconds from 1s to 24h, because the Lease's field is an integer")]
    LeaseDuration(Duration),
    /// A pause of nothing would hammer the API server.
    #[error("retry period {retry_period:?}: expected more than 0 and less than the lease duration {lease_duration:?}")]
    RetryPeriod {
        /// What was asked for.
        retry_period: Duration,
        /// What it contradicts.
        lease_duration: Duration,
    },
    /// Nobody would ever take over.
    #[error("foreign grace {0:?}: expected at most 24h")]
    ForeignGrace(Duration),
    /// A later end would overlap a successor.
    #[error(
        "renew deadline {renew_deadline:?} is unsafe with lease duration {lease_duration:?}: with clocks that run wrong by \
         up to {CLOCK_RATE_ERROR_PERCENT} % and a stop margin of {stop_margin:?} it can be at most {latest:?}; shorten the \
         renew deadline or lengthen the lease duration"
    )]
    RenewDeadline {
        /// What was asked for.
        renew_deadline: Duration,
        /// What it contradicts.
        lease_duration: Duration,
        /// The time for running work to end.
        stop_margin: Duration,
        /// The latest safe value.
        latest: Duration,
    },
    /// The leader would lose its term at the first slow answer.
    #[error(
        "{cause} leaves a validity of {validity:?} with lease duration {lease_duration:?}: expected at least half of the \
         lease duration, or a single slow answer ends the term; change one of the two"
    )]
    NotLive {
        /// Which setting is too short or too long, with its value.
        cause: String,
        /// What would remain.
        validity: Duration,
        /// What it contradicts.
        lease_duration: Duration,
    },
}

impl Default for TimingRequest {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(15),
            renew_deadline: None,
            retry_period: Duration::from_secs(2),
            stop_margin: Duration::from_secs(1),
            foreign_grace: Duration::from_secs(5),
        }
    }
}

impl Timing {
    /// Checks what was asked for.
    ///
    /// # Errors
    /// [`TimingError`], naming the two settings that contradict each other.
    pub fn new(request: TimingRequest) -> Result<Self, TimingError> {
        let TimingRequest { lease_duration, renew_deadline, retry_period, stop_margin, foreign_grace } = request;
        if foreign_grace > LEASE_DURATION_MAX {
            return Err(TimingError::ForeignGrace(foreign_grace));
        }
        if lease_duration.is_zero() || lease_duration.subsec_nanos() != 0 || lease_duration > LEASE_DURATION_MAX {
            return Err(TimingError::LeaseDuration(lease_duration));
        }
        if retry_period.is_zero() || retry_period >= lease_duration {
            return Err(TimingError::RetryPeriod { retry_period, lease_duration });
        }
        let latest = lease_end_after(lease_duration).saturating_sub(stop_margin);
        if let Some(renew_deadline) = renew_deadline.filter(|asked| *asked > latest) {
            return Err(TimingError::RenewDeadline { renew_deadline, lease_duration, stop_margin, latest });
        }
        let validity = renew_deadline.unwrap_or(latest);
        if validity < lease_duration / 2 {
            let cause = renew_deadline.map_or_else(
                || format!("stop margin {stop_margin:?}"),
                |renew_deadline| format!("renew deadline {renew_deadline:?}"),
            );
            return Err(TimingError::NotLive { cause, validity, lease_duration });
        }
        Ok(Self { lease: lease_duration, validity, retry_period, foreign_grace })
    }

    /// L: what is written in the Lease.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// L as the Lease's field holds it.
    pub fn lease_seconds(&self) -> i32 {
        Self::seconds(self.lease)
    }

    /// A duration as the Lease's field holds it.
    pub fn seconds(duration: Duration) -> i32 {
        i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
    }

    /// Until when a write that was sent at `sent` makes its term valid.
    pub fn valid_until(&self, sent: BootTime) -> BootTime {
        sent + self.validity
    }

    /// When a successor may be in office after a write that was sent at `sent`.
    pub fn lease_end(&self, sent: BootTime) -> BootTime {
        sent + lease_end_after(self.lease)
    }

    /// How long a confirmed write makes a term valid.
    #[cfg(test)]
    pub fn validity(&self) -> Duration {
        self.validity
    }

    /// When to renew after a confirmed write that was sent at `sent`.
    pub fn renew_at(&self, sent: BootTime) -> BootTime {
        sent + self.lease / 3
    }

    /// How long one try may take while `remains` is left of the term: a third of it, at least
    /// [`TRY_DEADLINE_MIN`], never more than all of it.
    pub fn try_deadline(remains: Duration) -> Duration {
        (remains / 3).max(TRY_DEADLINE_MIN).min(remains)
    }

    /// How long one try may take when no term is at stake: to acquire, to release, to read as a standby.
    pub fn calm_deadline(&self) -> Duration {
        (self.lease / 6).max(TRY_DEADLINE_MIN)
    }

    /// How late a renewal may be before a standby asks, and how often it goes on asking.
    pub fn overdue(&self) -> Duration {
        OVERDUE_MAX.min(self.lease / 10)
    }

    /// The longest time between two renewals of a lease of `duration` that a clock may show while nothing is late: a third
    /// of it, by a slow clock of the leader and a fast one here.
    pub fn pace_max(duration: Duration) -> Duration {
        duration / 3 * (100 + CLOCK_RATE_ERROR_PERCENT) / (100 - CLOCK_RATE_ERROR_PERCENT)
    }

    /// The pause after a failed try while `remains` is left of the term, if the server asked for `asked`. A leader may wait
    /// for no more than half of what remains: a pause that costs the term helps nobody.
    pub fn pause(&self, remains: Duration, asked: Option<Duration>) -> Duration {
        let own = self.retry_period.min(remains / 6);
        own.max(asked.unwrap_or_default().min(remains / 2)).max(TRY_PAUSE_MIN)
    }

    /// The pause after a failed try when no term is at stake, if the server asked for `asked`: a lease duration at most.
    pub fn calm_pause(&self, asked: Option<Duration>) -> Duration {
        self.retry_period.max(asked.unwrap_or_default().min(self.lease)).max(TRY_PAUSE_MIN)
    }

    /// What a holder that is not Tenure's gets besides its lease, and after its release.
    pub fn foreign_grace(&self) -> Duration {
        self.foreign_grace
    }

    /// By how much the replica of this rank lets others go first after an expiry.
    pub fn rank_jitter(&self, rank: u64) -> Duration {
        let most = RANK_JITTER_MAX.min(self.lease / 15);
        let millis = u64::try_from(most.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(rank % millis)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(lease: u64) -> TimingRequest {
        TimingRequest { lease_duration: Duration::from_secs(lease), ..TimingRequest::default() }
    }

    proptest! {
        #[test]
        fn the_slowest_leader_ends_before_the_fastest_standby_begins(lease_s in 1u64..86_400, stop_ms in 0u64..5_000) {
            let stop_margin = Duration::from_millis(stop_ms);
            if let Ok(timing) = Timing::new(TimingRequest { stop_margin, ..request(lease_s) }) {
                // True time, in nanoseconds times 100: a clock slow by ρ shows 90 in 100, a fast one 110 in 100.
                let end_true = (timing.validity() + stop_margin).as_nanos() * 100 * 110;
                let begin_true = timing.lease().as_nanos() * 100 * 90;
                prop_assert!(end_true <= begin_true);
            }
        }

        #[test]
        fn a_try_never_takes_more_than_what_remains(remains_ms in 0u64..100_000) {
            let remains = Duration::from_millis(remains_ms);
            prop_assert!(Timing::try_deadline(remains) <= remains);
        }
    }

    #[test]
    fn the_default_lease_is_valid_for_eleven_and_a_quarter_seconds() {
        let timing = Timing::new(TimingRequest::default()).expect("the defaults are safe");
        assert_eq!(timing.validity().as_millis(), 11_272);
        assert_eq!(timing.lease_seconds(), 15);
    }

    #[test]
    fn an_unsafe_renew_deadline_is_refused_with_both_names() {
        let asked = TimingRequest { renew_deadline: Some(Duration::from_secs(14)), ..request(15) };
        let message = Timing::new(asked).expect_err("14 s of 15 s is unsafe").to_string();
        assert!(message.contains("renew deadline 14s") && message.contains("lease duration 15s"), "{message}");
        assert!(message.contains("at most 11.27"), "{message}");
    }

    #[test]
    fn a_shorter_renew_deadline_is_the_bound() {
        let asked = TimingRequest { renew_deadline: Some(Duration::from_secs(10)), ..request(15) };
        assert_eq!(Timing::new(asked).expect("safe").validity(), Duration::from_secs(10));
    }

    #[test]
    fn a_validity_below_half_of_the_lease_is_refused_as_not_live() {
        let margin = TimingRequest { stop_margin: Duration::from_secs(6), ..request(15) };
        let message = Timing::new(margin).expect_err("not live").to_string();
        assert!(message.contains("stop margin 6s") && message.contains("lease duration 15s"), "{message}");
        let deadline = TimingRequest { renew_deadline: Some(Duration::from_secs(7)), ..request(15) };
        let message = Timing::new(deadline).expect_err("not live").to_string();
        assert!(message.contains("renew deadline 7s"), "{message}");
    }

    #[test]
    fn fractional_leases_and_pauses_of_nothing_are_refused() {
        let fraction = TimingRequest { lease_duration: Duration::from_millis(1_500), ..TimingRequest::default() };
        assert!(matches!(Timing::new(fraction), Err(TimingError::LeaseDuration(_))));
        let none = TimingRequest { retry_period: Duration::ZERO, ..TimingRequest::default() };
        assert!(matches!(Timing::new(none), Err(TimingError::RetryPeriod { .. })));
        let long = TimingRequest { retry_period: Duration::from_secs(15), ..TimingRequest::default() };
        assert!(matches!(Timing::new(long), Err(TimingError::RetryPeriod { .. })));
    }
}
