//! Periodic jobs on the sandbox, under paused time: what a leader does with slots, runs, answers that are lost and leaders
//! that are gone.

mod adoption;
mod doubt;
mod handover;
mod job_doubt;
mod job_template;
mod replace;
mod slots;
mod stage;
