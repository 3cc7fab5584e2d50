//! The program at the other end of a session.

use std::time::{Duration, Instant};

use pmu_proto::v1::distribute_request::Step;
use pmu_proto::v1::distribute_response::Step as Answer;
use pmu_proto::v1::{DistributeAttach, DistributeStaging, DistributeWindow, Failure};

/// The session is over: the program is gone, has ended it, or broke its rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Over;

/// What came from a program.
#[derive(Debug)]
pub enum Heard {
    /// A message.
    Step(Box<Step>),
    /// Nothing yet.
    Nothing,
    /// The end: nothing will come any more.
    End,
}

/// What a session has of its program: the messages, the bytes that it writes, and whether it still may. Used by one thread at a time.
pub trait Program {
    /// The next message; none when the program has ended the session, or is gone. Blocks.
    fn hear(&mut self) -> Option<Step>;

    /// The next message, if it is there.
    fn hear_now(&mut self) -> Heard;

    /// Answers. May block while the program doesn't listen.
    ///
    /// # Errors
    /// [`Over`]: the program is gone.
    fn tell(&mut self, answer: Answer) -> Result<(), Over>;

    /// Whether sets and records of the program may be distributed now. May block.
    ///
    /// # Errors
    /// A grant was taken away; the distributor stops.
    fn check_admitted(&self) -> Result<(), Box<Failure>>;

    /// Makes staging memory, if there is none, and expects a data connection; one that was expected or made before is closed.
    ///
    /// # Errors
    /// No such provider; no memory; the fabric refuses.
    fn attach(&mut self, attach: &DistributeAttach) -> Result<DistributeStaging, Box<Failure>>;

    /// Waits for the connection that is expected, and gives it a window on the staging memory. None: none is expected.
    ///
    /// # Errors
    /// It doesn't come in time; the fabric refuses.
    fn connected(&mut self) -> Option<Result<DistributeWindow, Box<Failure>>>;

    /// Length of the staging memory, which is a ring.
    fn staging_bytes(&self) -> u64;

    /// Copies bytes out of the ring, from a position that counts the session's bytes. They may change while it copies. The caller has checked
    /// that they don't cross the ring's end.
    ///
    /// # Errors
    /// There is no staging memory, or it can't be read.
    fn copy_out(&self, position: u64, piece: &mut [u8]) -> Result<(), Box<Failure>>;

    /// The clock that bounds waits.
    fn now(&self) -> Instant;

    /// Sleeps on that clock.
    fn pause(&self, how_long: Duration);

    /// A set of so many bytes is stored: counted for whoever watches.
    fn count_set(&self, bytes: u64);

    /// Records of so many bytes are on their way to the units: counted for whoever watches.
    fn count_records(&self, records: u64, bytes: u64);
}
