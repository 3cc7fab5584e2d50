//! One session: a thread that takes pieces out of staging memory for its [`Work`], which gives them to the units and answers what became of
//! them.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pmu_client::distributed::wire::{failure, failure_to_wire, missing_to_wire};
use pmu_client::{
    ClientError, ConnectOptions, MissingUnit, OpenOptions, PersistenceChoice, Spread, Timeouts,
};
use pmu_format::{PrincipalName, RegionName, crc64_nvme};
use pmu_proto::v1::distribute_request::Step;
use pmu_proto::v1::distribute_response::Step as Answer;
use pmu_proto::v1::failure::Kind;
use pmu_proto::v1::{self, DistributeResponse, Failure, Reason};
use tokio::sync::mpsc;
use tonic::Status;

use super::records::Records;
use super::sets::Sets;
use super::staging::{Offer, Staging};
use super::{Distributor, Host};
use crate::control::convert;
use crate::control::reasons::Refusal;

/// The longest piece; and at most this part of the staging memory, so that several are under way.
const PIECE_BYTES_MAX: u64 = 1 << 20;
const PIECES_MIN: u64 = 8;
/// A NIC may acknowledge a write before the processor sees it. A piece that is not there after this time is damaged.
const VISIBLE_WITHIN: Duration = Duration::from_millis(100);
/// What a program may ask of the waits for units, in milliseconds.
const OPEN_MS: (u32, u32) = (100, 60_000);
const STALL_MS: (u32, u32) = (100, 300_000);

/// What a session is for: the sets of a region, or its records.
pub(super) trait Work {
    /// What the program is told of the region, for the distributor of this name and its staging memory.
    fn opened(&mut self, distributor: &str, staging_bytes: u64) -> v1::DistributeOpened;

    /// The next message; none when the program has ended the session.
    fn next(&mut self, session: &mut Session) -> Result<Option<Step>, Over>;

    /// Takes a message that is about sets or records.
    fn step(
        &mut self,
        session: &mut Session,
        staging: Option<&Staging>,
        step: Step,
    ) -> Result<(), Over>;
}

/// A piece as the program announces it.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) position: u64,
    pub(super) length_bytes: u32,
    pub(super) checksum: u64,
}

impl Piece {
    const fn end(self) -> u64 {
        self.position.saturating_add(self.length_bytes as u64)
    }
}

/// For whom which region is distributed.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) principal: PrincipalName,
    pub(super) region: RegionName,
}

/// See the module.
pub(super) struct Session {
    distributor: Arc<Distributor>,
    client: Client,
    seeds: Vec<String>,
    pub(super) requests: mpsc::Receiver<Step>,
    answers: mpsc::Sender<Result<DistributeResponse, Status>>,
    /// End of the newest piece.
    position: u64,
    /// What was copied out, to be looked at: staging memory may change under it.
    pub(super) bytes: Vec<u8>,
}

/// The session is over.
pub(super) struct Over;

impl Session {
    pub(super) fn new(
        distributor: Arc<Distributor>,
        client: Client,
        seeds: Vec<String>,
        requests: mpsc::Receiver<Step>,
        answers: mpsc::Sender<Result<DistributeResponse, Status>>,
    ) -> Self {
        Self {
            distributor,
            client,
            seeds,
            requests,
            answers,
            position: 0,
            bytes: Vec::new(),
        }
    }

    /// Runs the session to its end. A set in progress is given up then.
    pub(super) fn run(mut self, open: &v1::DistributeOpen) {
        let distributor = Arc::clone(&self.distributor);
        let Client { principal, region } = self.client.clone();
        let span = tracing::info_span!("distribute", %principal, %region);
        let _entered = span.entered();
        distributor.count(true);
        match self.open(open) {
            Ok(mut work) => {
                tracing::info!("distribution begins");
                distributor.enter(&region, &principal);
                let _ = self.serve(work.as_mut());
                drop(work);
                distributor.leave(&region, &principal);
                tracing::info!("distribution ends");
            }
            Err(error) => {
                tracing::info!(%error, "the region can't be distributed");
                let failure = self.opening_failure(&error);
                let _ = self.fail(0, failure, Vec::new());
            }
        }
        distributor.count(false);
        // Only now the program hears that the session is over: the region is free.
        drop(self.answers);
    }

    fn open(&self, open: &v1::DistributeOpen) -> Result<Box<dyn Work>, ClientError> {
        let within = |asked: u32, bounds: (u32, u32)| {
            Duration::from_millis(asked.clamp(bounds.0, bounds.1).into())
        };
        let mut timeouts = Timeouts::default();
        timeouts.open = within(open.open_ms, OPEN_MS);
        timeouts.stall = within(open.stall_ms, STALL_MS);
        // A program sends no record that has no room.
        timeouts.back_pressure = Duration::ZERO;
        let persistence = convert::requested_persistence(open.persistence)
            .map_err(|refusal| ClientError::Invalid(refusal.message))?
            .map_or(PersistenceChoice::Auto, PersistenceChoice::Forced);
        let options = OpenOptions::new()
            .timeouts(timeouts)
            .persistence(persistence);
        let connect = ConnectOptions::with_timeout(timeouts.open);
        let seeds: Vec<_> = self.seeds.iter().map(String::as_str).collect();
        let region = self.client.region.as_str();
        let spread = Spread::find(&seeds, region, &self.distributor.identity, &connect)?;
        Ok(if open.mode() == v1::Mode::Append {
            Box::new(Records::new(spread.open_log_primary(&options)?))
        } else {
            Box::new(Sets::new(spread.open_primary(&options)?))
        })
    }

    /// Who holds the region is a principal of the units': the program is told for whom.
    fn opening_failure(&self, error: &ClientError) -> Failure {
        let mut failure = failure_to_wire(error);
        if let ClientError::WriterExists { .. } = error
            && let Some(holder) = self.distributor.holder(&self.client.region)
        {
            let name = self.distributor.host.name();
            failure
                .text
                .push_str(&format!("; {name} distributes it for {holder}"));
        }
        failure
    }

    fn serve(&mut self, work: &mut dyn Work) -> Result<(), Over> {
        let host = Arc::clone(&self.distributor.host);
        let staging_bytes = self.distributor.staging_bytes;
        self.say(Answer::Opened(work.opened(host.name(), staging_bytes)))?;
        let mut staging = None;
        let mut offer: Option<Offer<'_>> = None;
        while let Some(step) = work.next(self)? {
            match step {
                Step::Attach(attach) => {
                    drop(offer.take());
                    offer = self.attach(host.as_ref(), &mut staging, &attach)?;
                }
                Step::Connected(_) => self.connected(host.as_ref(), offer.as_ref())?,
                Step::Open(_) => return self.broken("the region is open"),
                step => work.step(self, staging.as_ref(), step)?,
            }
        }
        Ok(())
    }

    pub(super) fn say(&self, step: Answer) -> Result<(), Over> {
        let answer = DistributeResponse { step: Some(step) };
        self.answers.blocking_send(Ok(answer)).map_err(|_| Over)
    }

    pub(super) fn fail(
        &self,
        put: u64,
        failure: Failure,
        missing: Vec<v1::MissingUnit>,
    ) -> Result<(), Over> {
        self.say(Answer::Failed(v1::DistributeFailed {
            put,
            failure: Some(failure),
            missing,
            appended_to: None,
        }))
    }

    /// The program broke a rule: nothing that it says can be relied upon.
    pub(super) fn broken<T>(&self, what: &str) -> Result<T, Over> {
        tracing::warn!(what, "the program broke the protocol");
        let _ = self.fail(0, failure(Kind::Protocol, self.region(), what), Vec::new());
        Err(Over)
    }

    pub(super) fn region(&self) -> &str {
        self.client.region.as_str()
    }

    fn refusal(&self, refusal: &Refusal) -> Box<Failure> {
        let kind = match refusal.reason {
            Reason::NoGrant => Kind::NoGrant,
            Reason::NoProvider => Kind::NoProvider,
            _ => Kind::Refused,
        };
        Box::new(Failure {
            reason: pmu_proto::reason::name(refusal.reason).to_owned(),
            ..failure(kind, self.region(), refusal.message.as_str())
        })
    }

    fn attach<'a>(
        &mut self,
        host: &'a dyn Host,
        staging: &mut Option<Staging>,
        attach: &v1::DistributeAttach,
    ) -> Result<Option<Offer<'a>>, Over> {
        match self.try_attach(host, staging, attach) {
            Ok((offer, answer)) => {
                self.say(Answer::Staging(answer))?;
                Ok(Some(offer))
            }
            Err(refusal) => {
                let failure = self.refusal(&refusal);
                self.fail(0, *failure, Vec::new())?;
                Ok(None)
            }
        }
    }

    fn try_attach<'a>(
        &mut self,
        host: &'a dyn Host,
        staging: &mut Option<Staging>,
        attach: &v1::DistributeAttach,
    ) -> Result<(Offer<'a>, v1::DistributeStaging), Refusal> {
        let provider = convert::requested_provider(attach.provider)?;
        let fits = |listener: &&crate::state::Listener| {
            provider.is_none_or(|provider| listener.fabric.provider() == provider)
        };
        let listener = host.listeners().iter().find(fits);
        let listener = listener
            .ok_or_else(|| Refusal::new(Reason::NoProvider, "the distributor does not offer it"))?;
        let length = self.distributor.staging_bytes;
        if staging.is_none() {
            *staging = Some(Staging::create(self.distributor.take_address(), length)?);
        }
        let Some(staging) = staging else {
            return Err(Refusal::new(Reason::Fabric, "no staging memory"));
        };
        let piece_max = PIECE_BYTES_MAX.min(length / PIECES_MIN);
        self.bytes.reserve_exact(piece_max as usize);
        let limits = host.limits();
        let offer = staging.offer(listener.fabric.as_ref(), limits.connect_within())?;
        let answer = v1::DistributeStaging {
            connect_token: offer.token.0.to_vec(),
            token_valid_ms: limits.connect_within_ms,
            address: Some(v1::DataAddress {
                provider: convert::provider(listener.fabric.provider()).into(),
                address: listener.address.clone(),
            }),
            persistence: convert::persistence(offer.method).into(),
            length_bytes: length,
            piece_bytes_max: u32::try_from(piece_max).unwrap_or(u32::MAX),
        };
        Ok((offer, answer))
    }

    fn connected(&self, host: &dyn Host, offer: Option<&Offer<'_>>) -> Result<(), Over> {
        let Some(offer) = offer else {
            return self.broken("no data connection was asked for");
        };
        match offer.bind(host.limits().connect_within()) {
            Ok(window) => self.say(Answer::Window(v1::DistributeWindow {
                window: Some(convert::window(&window, super::staging::WRITE_ONLY)),
            })),
            Err(refusal) => self.fail(0, *self.refusal(&refusal), Vec::new()),
        }
    }

    /// Answers a request to connect again to units that were missing.
    pub(super) fn rejoined<'a>(
        &self,
        back: Result<usize, ClientError>,
        missing: impl Iterator<Item = &'a MissingUnit>,
    ) -> Result<(), Over> {
        let missing = missing_to_wire(missing);
        match back {
            Ok(back) => self.say(Answer::Rejoined(v1::DistributeRejoined {
                back: u32::try_from(back).unwrap_or(u32::MAX),
                missing,
            })),
            Err(error) => self.fail(0, failure_to_wire(&error), missing),
        }
    }

    /// A grant may have been taken away, or the process told to stop.
    pub(super) fn check_admitted(&self) -> Result<(), Box<Failure>> {
        let Client { principal, region } = &self.client;
        let admitted = self.distributor.host.admit(principal, region);
        admitted.map(drop).map_err(|refusal| self.refusal(&refusal))
    }

    /// Whether a piece lies where one may.
    pub(super) fn check_place<'a>(
        &mut self,
        staging: Option<&'a Staging>,
        piece: Piece,
    ) -> Result<&'a Staging, Over> {
        let Some(staging) = staging else {
            return self.broken("a piece before the data connection");
        };
        let length = u64::from(piece.length_bytes);
        let to_end = staging.length() - piece.position % staging.length();
        let skipped = piece.position.checked_sub(self.position);
        if length == 0
            || length > PIECE_BYTES_MAX.min(staging.length() / PIECES_MIN)
            || length > to_end
            || skipped.is_none_or(|skipped| skipped >= staging.length())
        {
            return self.broken("a piece where none can be");
        }
        self.position = piece.end();
        Ok(staging)
    }

    /// Copies a piece behind the bytes that were copied out before, where nobody else can change it, and checks it there.
    pub(super) fn copy_out(&mut self, staging: &Staging, piece: Piece) -> Result<(), Box<Failure>> {
        let from = self.bytes.len();
        self.bytes.resize(from + piece.length_bytes as usize, 0);
        let until = Instant::now() + VISIBLE_WITHIN;
        loop {
            let copied = staging.copy_out(piece.position, &mut self.bytes[from..]);
            copied.map_err(|refusal| self.refusal(&refusal))?;
            if crc64_nvme(&self.bytes[from..]) == piece.checksum {
                return Ok(());
            }
            if Instant::now() >= until {
                let text = format!(
                    "the piece of {} bytes at position {} has not the checksum that was said",
                    piece.length_bytes, piece.position
                );
                return Err(Box::new(failure(Kind::DamagedPiece, self.region(), text)));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// What is copied out may be written again.
    pub(super) fn taken(&self, piece: Piece) -> Result<(), Over> {
        let position = piece.end();
        self.say(Answer::Taken(v1::DistributeTaken { position }))
    }
}
