//! The way to a distributor: small messages in both directions, and data connections.

use std::time::{Duration, Instant};

use pmu_fabric::{ConnectToken, Connection, FabricError, PersistenceMethod, Provider};
use tonic::Status;

use crate::error::ClientError;
use crate::options::ProviderChoice;

pub use pmu_proto::v1::distribute_request::Step as Request;
pub use pmu_proto::v1::distribute_response::Step as Answer;

/// What came within the time.
#[derive(Debug)]
pub enum Heard {
    /// An answer.
    Answer(Box<Answer>),
    /// Nothing.
    Nothing,
    /// The stream is over; with a status unless the distributor ended it in order.
    End(Option<Status>),
}

/// The stream is over; [`Way::hear`] says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Over;

/// See the module. Used by one thread at a time.
pub trait Way: Send {
    /// The distributor's address, for messages.
    fn address(&self) -> &str;

    /// Sends a message. There is room for all pieces that may be under way: waits a while only for a program that begins and gives up
    /// hundreds of sets.
    ///
    /// # Errors
    /// [`Over`].
    fn say(&self, step: Request) -> Result<(), Over>;

    /// The next answer, within `timeout`.
    fn hear(&self, timeout: Duration) -> Heard;

    /// The next answer, if it is there.
    fn hear_now(&self) -> Heard;

    /// What a stream's end means before anything was under way.
    fn refused(&self, status: Option<&Status>, region: &str) -> ClientError;

    /// Ends the session and waits a short while until the distributor has let the region go.
    fn close(&mut self);

    /// The providers to try, in order. Never empty.
    fn providers(&self, choice: ProviderChoice) -> Vec<Provider>;

    /// Makes the data connection. Blocks at most `timeout`.
    ///
    /// # Errors
    /// As those of the fabric.
    fn connect(
        &self,
        provider: Provider,
        address: &str,
        token: ConnectToken,
        persistence: PersistenceMethod,
        timeout: Duration,
    ) -> Result<Box<dyn Connection>, FabricError>;

    /// The clock that bounds waits.
    fn now(&self) -> Instant;
}
