//! Thousands of elections among pure machines: a store with compare-and-swap, messages that are late or lost, replicas that
//! freeze, are cut off, killed and started again in their place, stopped or stood aside, clocks whose rates are wrong by up
//! to ρ, leases of different durations, clients of another make, and people who delete and edit the Lease or put an old
//! manifest of it back.
//!
//! The judge stands outside. Safety: whenever a machine enters or prolongs a term, no other machine's guard may say yes.
//! Liveness, for each loss of a leader: see [`judge`].
//!
//! `TENURE_MODEL_SEED` and `TENURE_MODEL_SEEDS` choose the seeds; each is one simulated hour.

mod faults;
mod foreign;
mod judge;
mod store;
mod world;

use std::time::Duration;

use world::{Instant, SECOND, Setting, World};

const HOUR: Instant = 3_600 * SECOND;

/// The seeds of one run of the tests, of each setting. `make model` plays more.
const SEEDS: u64 = 10;

fn seeds() -> std::ops::Range<u64> {
    let of = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first: u64 = of("TENURE_MODEL_SEED").unwrap_or(1);
    first..first + of("TENURE_MODEL_SEEDS").unwrap_or(SEEDS)
}

/// Plays one hour for each seed, and prints what was seen.
fn play(name: &str, setting: impl Fn(u64) -> Setting) {
    let seeds = seeds();
    let (mut terms, mut losses, mut longest) = (0, 0, Duration::ZERO);
    for seed in seeds.clone() {
        let mut world = World::new(seed, setting(seed));
        world.run(HOUR);
        assert!(world.judge.terms > 0, "seed {seed}: nobody led in an hour");
        terms += world.judge.terms;
        losses += world.judge.losses;
        longest = longest.max(world.judge.longest());
    }
    println!("{name}: seeds {seeds:?}: {terms} terms, {losses} times without a leader, at most {longest:?} in calm");
}

#[test]
fn no_two_guards_say_yes_whatever_happens_to_messages_clocks_and_the_lease() {
    play("chaos", |_| Setting::CHAOS);
}

#[test]
fn no_two_guards_say_yes_while_replicas_have_leases_of_different_durations() {
    play("mixed durations", |_| Setting { mixed_leases: true, ..Setting::CHAOS });
}

#[test]
fn each_loss_of_a_leader_is_made_good_within_a_lease_and_a_second() {
    play("calm network", |_| Setting::CALM);
}

#[test]
fn a_leader_is_found_at_any_latency_below_half_of_a_lease() {
    // From a seventh of a lease to a half of it, over the seeds.
    play("slow answers", |seed| Setting {
        latency: Setting::LEASE / 7 + Setting::LEASE * (seed % 16) as u32 / 42,
        ..Setting::CALM
    });
}

#[test]
fn no_two_guards_say_yes_at_a_latency_of_up_to_two_thirds_of_a_lease() {
    play("very slow answers", |seed| Setting {
        latency: Setting::LEASE / 2 + Setting::LEASE * (seed % 16) as u32 / 90,
        live: false,
        ..Setting::CHAOS
    });
}

#[test]
fn one_api_server_of_three_that_only_errs_keeps_nobody_away() {
    play("one API server errs", |_| Setting { one_errs: true, ..Setting::CALM });
}
