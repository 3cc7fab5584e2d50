//! One session: hands the messages of its program to its [`Work`], and sees to the pieces and to what both kinds of work have in common.

use std::time::Duration;

use pmu_client::distributed::wire::{
    epochs_from_wire, epochs_to_wire, failure, failure_to_wire, missing_to_wire,
    persistence_from_wire,
};
use pmu_client::{ClientError, GoingOn, MissingUnit, OpenOptions, Spread, Timeouts};
use pmu_format::crc64_nvme;
use pmu_proto::v1::distribute_request::Step;
use pmu_proto::v1::distribute_response::Step as Answer;
use pmu_proto::v1::failure::Kind;
use pmu_proto::v1::{self, Failure};

use crate::program::{Over, Program};
use crate::records::Records;
use crate::sets::Sets;

/// The longest piece; and at most this part of the staging memory, so that several are under way.
const PIECE_BYTES_MAX: u64 = 1 << 20;
const PIECES_MIN: u64 = 8;
/// A NIC may acknowledge a write before the processor sees it. A piece that is not there after this time is damaged.
const VISIBLE_WITHIN: Duration = Duration::from_millis(100);
/// What a program may ask of the waits for units, in milliseconds.
const OPEN_MS: (u32, u32) = (100, 60_000);
const STALL_MS: (u32, u32) = (100, 300_000);

/// What a session is for: the sets of a region, or its records.
pub trait Work {
    /// What the program is told of the region, for the distributor of this name and its staging memory.
    fn opened(&mut self, distributor: &str, staging_bytes: u64) -> v1::DistributeOpened;

    /// The next message; none when the program has ended the session.
    ///
    /// # Errors
    /// [`Over`].
    fn next(&mut self, session: &mut Session<'_>) -> Result<Option<Step>, Over>;

    /// Takes a message that is about sets or records.
    ///
    /// # Errors
    /// [`Over`].
    fn step(&mut self, session: &mut Session<'_>, step: Step) -> Result<(), Over>;
}

/// A piece as the program announces it.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) position: u64,
    pub(crate) length_bytes: u32,
    pub(crate) checksum: u64,
}

impl Piece {
    const fn end(self) -> u64 {
        self.position.saturating_add(self.length_bytes as u64)
    }
}

/// Where the distributor's primary stands, as far as the program shall know; 0: as before.
#[derive(Clone, Copy, Default)]
pub(crate) struct Stand {
    pub(crate) term: u64,
    /// The newest set.
    pub(crate) newest: u64,
}

/// How long a program may let this side wait for units, bounded.
fn timeouts(open: &v1::DistributeOpen, defaults: Timeouts) -> Timeouts {
    let within = |asked: u32, bounds: (u32, u32)| {
        Duration::from_millis(asked.clamp(bounds.0, bounds.1).into())
    };
    let mut timeouts = defaults;
    timeouts.open = within(open.open_ms, OPEN_MS);
    timeouts.stall = within(open.stall_ms, STALL_MS);
    // A program sends no record that has no room.
    timeouts.back_pressure = Duration::ZERO;
    timeouts
}

/// Opens the region that a program asks for as its primary. `find` finds it, within the time that it is given; `options` are the distributor's own.
/// What the program goes on from afterwards, whether that succeeds or not, is left in `going_on`. Blocks.
///
/// # Errors
/// As [`Spread::open_primary`] and [`Spread::open_log_primary`]; [`ClientError::Invalid`] for a persistence method that is not known.
pub fn open(
    open: &v1::DistributeOpen,
    options: OpenOptions,
    going_on: &mut Option<GoingOn>,
    find: impl FnOnce(Duration) -> Result<Spread, ClientError>,
) -> Result<Box<dyn Work>, ClientError> {
    let timeouts = timeouts(open, options.timeouts);
    let persistence = persistence_from_wire(open.persistence)?;
    let options = options.timeouts(timeouts).persistence(persistence);
    let spread = find(timeouts.open)?;
    let spread = match epochs_from_wire(&open.goes_on_from) {
        nothing if nothing.is_empty() => spread,
        epochs => {
            let spread = spread.going_on_from(epochs);
            *going_on = Some(spread.going_on());
            spread
        }
    };
    Ok(if open.mode() == v1::Mode::Append {
        Box::new(Records::new(spread.open_log_primary(&options)?))
    } else {
        Box::new(Sets::new(spread.open_primary(&options)?))
    })
}

/// See the module.
pub struct Session<'a> {
    pub(crate) program: &'a mut dyn Program,
    region: &'a str,
    /// What the program goes on from, if it has said that.
    going_on: Option<GoingOn>,
    /// The data connection that was asked for last has its window on the staging memory.
    has_window: bool,
    /// End of the newest piece.
    position: u64,
    /// What was copied out, to be looked at: staging memory may change under it.
    pub(crate) bytes: Vec<u8>,
}

impl<'a> Session<'a> {
    /// One that nothing was said in yet, but that a region is to be opened.
    pub fn new(program: &'a mut dyn Program, region: &'a str, going_on: Option<GoingOn>) -> Self {
        Self {
            program,
            region,
            going_on,
            has_window: false,
            position: 0,
            bytes: Vec::new(),
        }
    }

    /// Runs the session to its end, as the distributor of this name. A set in progress is given up then.
    pub fn serve(mut self, work: &mut dyn Work, distributor: &str) {
        // Whoever is over was told why, or is gone.
        let _ = self.run(work, distributor);
    }

    /// Ends the session, as the region can't be opened.
    pub fn refuse(mut self, failure: Failure) {
        // The program may be gone.
        let _ = self.fail(0, failure, Vec::new());
    }

    fn run(&mut self, work: &mut dyn Work, distributor: &str) -> Result<(), Over> {
        let mut opened = work.opened(distributor, self.program.staging_bytes());
        if let Some(going_on) = &mut self.going_on {
            // Said here, and not again.
            let _ = going_on.news();
            opened.granted = epochs_to_wire(&going_on.all());
        }
        self.say(Answer::Opened(opened))?;
        while let Some(step) = work.next(self)? {
            match step {
                Step::Attach(attach) => self.attach(&attach)?,
                Step::Connected(_) => self.connected()?,
                Step::Open(_) => return self.broken("the region is open"),
                step => work.step(self, step)?,
            }
        }
        Ok(())
    }

    fn attach(&mut self, attach: &v1::DistributeAttach) -> Result<(), Over> {
        self.has_window = false;
        match self.program.attach(attach) {
            Ok(mut staging) => {
                let piece_max = self.piece_bytes_max();
                self.bytes.reserve_exact(piece_max as usize);
                staging.length_bytes = self.program.staging_bytes();
                staging.piece_bytes_max = u32::try_from(piece_max).unwrap_or(u32::MAX);
                self.say(Answer::Staging(staging))
            }
            Err(failure) => self.fail(0, *failure, Vec::new()),
        }
    }

    fn connected(&mut self) -> Result<(), Over> {
        if self.has_window {
            return self.broken("the data connection has its window");
        }
        match self.program.connected() {
            None => self.broken("no data connection was asked for"),
            Some(Ok(window)) => {
                self.has_window = true;
                self.say(Answer::Window(window))
            }
            Some(Err(failure)) => self.fail(0, *failure, Vec::new()),
        }
    }

    fn piece_bytes_max(&self) -> u64 {
        PIECE_BYTES_MAX.min(self.program.staging_bytes() / PIECES_MIN)
    }

    /// Answers. Before that the program hears of units that have granted their members again: should it lose this session, it would take itself
    /// for fenced otherwise.
    pub(crate) fn say(&mut self, answer: Answer) -> Result<(), Over> {
        if let Some(news) = self.going_on.as_mut().and_then(GoingOn::news) {
            let granted = epochs_to_wire(&news);
            self.program
                .tell(Answer::Granted(v1::DistributeGranted { granted }))?;
        }
        self.program.tell(answer)
    }

    pub(crate) fn fail(
        &mut self,
        put: u64,
        failure: Failure,
        missing: Vec<v1::MissingUnit>,
    ) -> Result<(), Over> {
        self.fail_in(Stand::default(), put, failure, missing)
    }

    /// As [`Self::fail`], of the units: the term may be another.
    pub(crate) fn fail_in(
        &mut self,
        stand: Stand,
        put: u64,
        failure: Failure,
        missing: Vec<v1::MissingUnit>,
    ) -> Result<(), Over> {
        self.say(Answer::Failed(v1::DistributeFailed {
            put,
            failure: Some(failure),
            missing,
            appended_to: None,
            term: stand.term,
            newest: stand.newest,
        }))
    }

    /// The program broke a rule: nothing that it says can be relied upon.
    pub(crate) fn broken<T>(&mut self, what: &str) -> Result<T, Over> {
        tracing::warn!(what, "the program broke the protocol");
        // It may be gone as well.
        let _ = self.fail(0, failure(Kind::Protocol, self.region, what), Vec::new());
        Err(Over)
    }

    /// Answers a request to connect again to units that were missing.
    pub(crate) fn rejoined<'b>(
        &mut self,
        back: Result<usize, ClientError>,
        stand: Stand,
        missing: impl Iterator<Item = &'b MissingUnit>,
    ) -> Result<(), Over> {
        let missing = missing_to_wire(missing);
        match back {
            Ok(back) => self.say(Answer::Rejoined(v1::DistributeRejoined {
                back: u32::try_from(back).unwrap_or(u32::MAX),
                missing,
                term: stand.term,
                newest: stand.newest,
            })),
            Err(error) => self.fail_in(stand, 0, failure_to_wire(&error), missing),
        }
    }

    /// Ends the session with [`Self::broken`] where no piece can lie yet.
    pub(crate) fn check_window(&mut self, what: &str) -> Result<(), Over> {
        if self.has_window {
            return Ok(());
        }
        self.broken(what)
    }

    /// Whether a piece lies where one may.
    pub(crate) fn check_place(&mut self, piece: Piece) -> Result<(), Over> {
        self.check_window("a piece before the data connection")?;
        let staging_bytes = self.program.staging_bytes();
        let length = u64::from(piece.length_bytes);
        let to_end = staging_bytes - piece.position % staging_bytes;
        let skipped = piece.position.checked_sub(self.position);
        if length == 0
            || length > self.piece_bytes_max()
            || length > to_end
            || skipped.is_none_or(|skipped| skipped >= staging_bytes)
        {
            return self.broken("a piece where none can be");
        }
        self.position = piece.end();
        Ok(())
    }

    /// Copies a piece behind the bytes that were copied out before, where nobody else can change it, and checks it there.
    pub(crate) fn copy_out(&mut self, piece: Piece) -> Result<(), Box<Failure>> {
        let from = self.bytes.len();
        self.bytes.resize(from + piece.length_bytes as usize, 0);
        let until = self.program.now() + VISIBLE_WITHIN;
        loop {
            self.program
                .copy_out(piece.position, &mut self.bytes[from..])?;
            if crc64_nvme(&self.bytes[from..]) == piece.checksum {
                return Ok(());
            }
            if self.program.now() >= until {
                let text = format!(
                    "the piece of {} bytes at position {} has not the checksum that was said",
                    piece.length_bytes, piece.position
                );
                return Err(Box::new(failure(Kind::DamagedPiece, self.region, text)));
            }
            self.program.pause(Duration::from_millis(1));
        }
    }

    /// What is copied out may be written again.
    pub(crate) fn taken(&mut self, piece: Piece) -> Result<(), Over> {
        let position = piece.end();
        self.say(Answer::Taken(v1::DistributeTaken { position }))
    }
}
