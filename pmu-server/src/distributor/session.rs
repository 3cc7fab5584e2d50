//! One session: a thread that takes pieces out of staging memory and gives them to the units, and answers what became of each set.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pmu_client::distributed::wire::{failure, failure_to_wire, missing_to_wire, receipt_to_wire};
use pmu_client::{
    ClientError, ConnectOptions, Label, OpenOptions, PersistenceChoice, Receipt, Spread,
    SpreadPrimary, SpreadPut, Timeouts,
};
use pmu_format::{PrincipalName, RegionName, crc64_nvme};
use pmu_proto::v1::distribute_request::Step;
use pmu_proto::v1::distribute_response::Step as Answer;
use pmu_proto::v1::failure::Kind;
use pmu_proto::v1::{self, DistributeResponse, Failure, Reason};
use tokio::sync::mpsc;
use tonic::Status;

use super::staging::{Offer, Staging};
use super::{Distributor, Host};
use crate::control::convert;
use crate::control::reasons::Refusal;
use crate::metrics;

/// The longest piece; and at most this part of the staging memory, so that several are under way.
const PIECE_BYTES_MAX: u64 = 1 << 20;
const PIECES_MIN: u64 = 8;
/// A NIC may acknowledge a write before the processor sees it. A piece that is not there after this time is damaged.
const VISIBLE_WITHIN: Duration = Duration::from_millis(100);
/// What a program may ask of the waits for units, in milliseconds.
const OPEN_MS: (u32, u32) = (100, 60_000);
const STALL_MS: (u32, u32) = (100, 300_000);

/// For whom sets of which region are distributed.
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
    requests: mpsc::Receiver<Step>,
    answers: mpsc::Sender<Result<DistributeResponse, Status>>,
    /// End of the newest piece.
    position: u64,
    /// The piece that is looked at: staging memory may change under it.
    piece: Vec<u8>,
}

/// The session is over.
struct Over;

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
            piece: Vec::new(),
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
            Ok(primary) => {
                tracing::info!(layout = %primary.spread().layout(), missing = primary.missing().count(), "distribution begins");
                distributor.enter(&region, &principal);
                let _ = self.serve(primary);
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

    fn open(&self, open: &v1::DistributeOpen) -> Result<SpreadPrimary, ClientError> {
        let within = |asked: u32, bounds: (u32, u32)| {
            Duration::from_millis(asked.clamp(bounds.0, bounds.1).into())
        };
        let mut timeouts = Timeouts::default();
        timeouts.open = within(open.open_ms, OPEN_MS);
        timeouts.stall = within(open.stall_ms, STALL_MS);
        let persistence = convert::requested_persistence(open.persistence)
            .map_err(|refusal| ClientError::Invalid(refusal.message))?
            .map_or(PersistenceChoice::Auto, PersistenceChoice::Forced);
        let options = OpenOptions::new()
            .timeouts(timeouts)
            .persistence(persistence);
        let connect = ConnectOptions::with_timeout(timeouts.open);
        let seeds: Vec<_> = self.seeds.iter().map(String::as_str).collect();
        let region = self.client.region.as_str();
        Spread::find(&seeds, region, &self.distributor.identity, &connect)?.open_primary(&options)
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

    fn serve(&mut self, mut primary: SpreadPrimary) -> Result<(), Over> {
        let host = Arc::clone(&self.distributor.host);
        let spread = primary.spread();
        self.say(Answer::Opened(v1::DistributeOpened {
            distributor: host.name().to_owned(),
            layout: spread.layout().to_bytes().to_vec(),
            capacity_bytes: spread.capacity_bytes(),
            newest: primary.newest().get(),
            missing: missing_to_wire(primary.missing()),
        }))?;
        let mut staging = None;
        let mut offer: Option<Offer<'_>> = None;
        while let Some(step) = self.requests.blocking_recv() {
            match step {
                Step::Attach(attach) => {
                    drop(offer.take());
                    offer = self.attach(host.as_ref(), &mut staging, &attach)?;
                }
                Step::Connected(_) => self.connected(host.as_ref(), offer.as_ref())?,
                Step::Begin(begin) => self.put(&mut primary, staging.as_ref(), &begin)?,
                Step::Rejoin(_) => self.rejoin(&mut primary)?,
                // Of a set that was given up: skipped, and its room is free.
                Step::Ready(ready) => {
                    self.check_place(staging.as_ref(), &ready)?;
                    self.taken(&ready)?;
                }
                Step::Finish(_) | Step::Abandon(_) => {}
                Step::Open(_) => return self.broken("the region is open"),
            }
        }
        Ok(())
    }

    fn say(&self, step: Answer) -> Result<(), Over> {
        let answer = DistributeResponse { step: Some(step) };
        self.answers.blocking_send(Ok(answer)).map_err(|_| Over)
    }

    fn fail(&self, put: u64, failure: Failure, missing: Vec<v1::MissingUnit>) -> Result<(), Over> {
        self.say(Answer::Failed(v1::DistributeFailed {
            put,
            failure: Some(failure),
            missing,
        }))
    }

    /// The program broke a rule: nothing that it says can be relied upon.
    fn broken<T>(&self, what: &str) -> Result<T, Over> {
        tracing::warn!(what, "the program broke the protocol");
        let _ = self.fail(0, failure(Kind::Protocol, self.region(), what), Vec::new());
        Err(Over)
    }

    fn region(&self) -> &str {
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
        self.piece.reserve_exact(piece_max as usize);
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

    fn rejoin(&self, primary: &mut SpreadPrimary) -> Result<(), Over> {
        match primary.rejoin() {
            Ok(back) => self.say(Answer::Rejoined(v1::DistributeRejoined {
                back: u32::try_from(back).unwrap_or(u32::MAX),
                missing: missing_to_wire(primary.missing()),
            })),
            Err(error) => {
                let missing = missing_to_wire(primary.missing());
                self.fail(0, failure_to_wire(&error), missing)
            }
        }
    }

    /// One set, from its beginning to its receipt or failure.
    fn put(
        &mut self,
        primary: &mut SpreadPrimary,
        staging: Option<&Staging>,
        begin: &v1::DistributeBegin,
    ) -> Result<(), Over> {
        let Some(staging) = staging else {
            return self.broken("a set before the data connection");
        };
        let Ok(label) = <[u8; 32]>::try_from(begin.label.as_slice()) else {
            return self.broken("a label of another length");
        };
        let done = match self.check_admitted() {
            Ok(()) => match primary.begin(begin.length_bytes, Label::from_bytes(label)) {
                Ok(put) => self.receive(put, staging, begin.put)?,
                Err(error) => Done::Failed(Box::new(failure_to_wire(&error))),
            },
            Err(refused) => Done::Failed(refused),
        };
        let missing = missing_to_wire(primary.missing());
        match done {
            Done::Stored(receipt) => {
                metrics::count_distributed(receipt.bytes);
                tracing::info!(set = ?receipt.set(), bytes = receipt.bytes, units = receipt.units.len(), "set distributed");
                self.say(Answer::Stored(v1::DistributeStored {
                    put: begin.put,
                    receipt: receipt_to_wire(&receipt),
                    missing,
                }))
            }
            Done::Failed(failure) => {
                tracing::warn!(kind = ?failure.kind(), text = failure.text, "set not distributed");
                self.fail(begin.put, *failure, missing)
            }
            Done::Abandoned => {
                tracing::info!("set given up by the program");
                Ok(())
            }
        }
    }

    /// A grant may have been taken away, or the process told to stop.
    fn check_admitted(&self) -> Result<(), Box<Failure>> {
        let Client { principal, region } = &self.client;
        let admitted = self.distributor.host.admit(principal, region);
        admitted.map(drop).map_err(|refusal| self.refusal(&refusal))
    }

    /// Takes the pieces of a set until it is finished or given up.
    fn receive(
        &mut self,
        mut put: SpreadPut<'_>,
        staging: &Staging,
        number: u64,
    ) -> Result<Done, Over> {
        let mut written = 0;
        loop {
            match self.requests.blocking_recv() {
                Some(Step::Ready(ready)) if ready.put == number => {
                    self.check_place(Some(staging), &ready)?;
                    if let Err(failure) = self.copy_out(staging, &ready) {
                        drop(put);
                        self.taken(&ready)?;
                        return Ok(Done::Failed(failure));
                    }
                    written += u64::from(ready.length_bytes);
                    // What is copied out may be written again while the units get it.
                    self.taken(&ready)?;
                    if let Err(error) = put.write_bytes(&self.piece) {
                        return Ok(Done::Failed(Box::new(failure_to_wire(&error))));
                    }
                }
                Some(Step::Finish(finish)) if finish.put == number => {
                    if finish.length_bytes != written {
                        return self.broken("a set's length is not that of its pieces");
                    }
                    if let Err(refused) = self.check_admitted() {
                        return Ok(Done::Failed(refused));
                    }
                    return Ok(match put.finish() {
                        Ok(receipt) => Done::Stored(receipt),
                        Err(error) => Done::Failed(Box::new(failure_to_wire(&error))),
                    });
                }
                Some(Step::Abandon(abandon)) if abandon.put == number => {
                    return Ok(Done::Abandoned);
                }
                Some(_) => return self.broken("a message that does not belong to the set"),
                None => return Err(Over),
            }
        }
    }

    /// Whether a piece lies where one may.
    fn check_place(
        &mut self,
        staging: Option<&Staging>,
        ready: &v1::DistributeReady,
    ) -> Result<(), Over> {
        let Some(staging) = staging else {
            return self.broken("a piece before the data connection");
        };
        let length = u64::from(ready.length_bytes);
        let to_end = staging.length() - ready.position % staging.length();
        let skipped = ready.position.checked_sub(self.position);
        if length == 0
            || length > PIECE_BYTES_MAX.min(staging.length() / PIECES_MIN)
            || length > to_end
            || skipped.is_none_or(|skipped| skipped >= staging.length())
        {
            return self.broken("a piece where none can be");
        }
        self.position = ready.position.saturating_add(length);
        Ok(())
    }

    /// Copies a piece to where nobody else can change it, and checks it there.
    fn copy_out(
        &mut self,
        staging: &Staging,
        ready: &v1::DistributeReady,
    ) -> Result<(), Box<Failure>> {
        self.piece.resize(ready.length_bytes as usize, 0);
        let until = Instant::now() + VISIBLE_WITHIN;
        loop {
            let copied = staging.copy_out(ready.position, &mut self.piece);
            copied.map_err(|refusal| self.refusal(&refusal))?;
            if crc64_nvme(&self.piece) == ready.checksum {
                return Ok(());
            }
            if Instant::now() >= until {
                let text = format!(
                    "the piece of {} bytes at position {} has not the checksum that was said",
                    ready.length_bytes, ready.position
                );
                return Err(Box::new(failure(Kind::DamagedPiece, self.region(), text)));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn taken(&self, ready: &v1::DistributeReady) -> Result<(), Over> {
        let position = ready.position.saturating_add(u64::from(ready.length_bytes));
        self.say(Answer::Taken(v1::DistributeTaken { position }))
    }
}

/// How a set ended.
enum Done {
    Stored(Receipt),
    Failed(Box<Failure>),
    Abandoned,
}
