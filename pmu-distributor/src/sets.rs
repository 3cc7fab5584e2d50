//! The work of a session in overwrite mode: sets, from their beginning to their receipt or failure.

use pmu_client::distributed::wire::{failure_to_wire, missing_to_wire, receipt_to_wire};
use pmu_client::{Label, Receipt, SpreadPrimary, SpreadPut};
use pmu_proto::v1::distribute_request::Step;
use pmu_proto::v1::distribute_response::Step as Answer;
use pmu_proto::v1::{self, Failure};

use crate::program::Over;
use crate::session::{Piece, Session, Stand, Work};

/// See the module.
pub(crate) struct Sets {
    primary: SpreadPrimary,
}

/// How a set ended.
enum Done {
    Stored(Receipt),
    Failed(Box<Failure>),
    Abandoned,
}

impl Sets {
    pub(crate) const fn new(primary: SpreadPrimary) -> Self {
        Self { primary }
    }

    fn stand(&self) -> Stand {
        Stand {
            term: self.primary.term().0,
            newest: self.primary.newest().get(),
        }
    }

    /// One set.
    fn put(&mut self, session: &mut Session<'_>, begin: &v1::DistributeBegin) -> Result<(), Over> {
        session.check_window("a set before the data connection")?;
        let Ok(label) = <[u8; 32]>::try_from(begin.label.as_slice()) else {
            return session.broken("a label of another length");
        };
        let label = Label::from_bytes(label);
        let done = match session.program.check_admitted() {
            Ok(()) => match self.primary.begin(begin.length_bytes, label) {
                Ok(put) => receive(session, put, begin.put)?,
                Err(error) => Done::Failed(Box::new(failure_to_wire(&error))),
            },
            Err(refused) => Done::Failed(refused),
        };
        let missing = missing_to_wire(self.primary.missing());
        let stand = self.stand();
        match done {
            Done::Stored(receipt) => {
                session.program.count_set(receipt.bytes);
                tracing::info!(set = ?receipt.set(), bytes = receipt.bytes, units = receipt.units.len(), "set distributed");
                session.say(Answer::Stored(v1::DistributeStored {
                    put: begin.put,
                    receipt: receipt_to_wire(&receipt),
                    missing,
                    term: stand.term,
                }))
            }
            Done::Failed(failure) => {
                tracing::warn!(kind = ?failure.kind(), text = failure.text, "set not distributed");
                session.fail_in(stand, begin.put, *failure, missing)
            }
            Done::Abandoned => {
                tracing::info!("set given up by the program");
                Ok(())
            }
        }
    }
}

impl Work for Sets {
    fn opened(&mut self, distributor: &str, _staging_bytes: u64) -> v1::DistributeOpened {
        let spread = self.primary.spread();
        v1::DistributeOpened {
            distributor: distributor.to_owned(),
            layout: spread.layout().to_bytes().to_vec(),
            capacity_bytes: spread.capacity_bytes(),
            newest: self.primary.newest().get(),
            missing: missing_to_wire(self.primary.missing()),
            term: self.primary.term().0,
            ..v1::DistributeOpened::default()
        }
    }

    fn next(&mut self, session: &mut Session<'_>) -> Result<Option<Step>, Over> {
        Ok(session.program.hear())
    }

    fn step(&mut self, session: &mut Session<'_>, step: Step) -> Result<(), Over> {
        match step {
            Step::Begin(begin) => self.put(session, &begin),
            Step::Rejoin(_) => {
                let back = self.primary.rejoin();
                session.rejoined(back, self.stand(), self.primary.missing())
            }
            // Of a set that was given up: skipped, and its room is free.
            Step::Ready(ready) => {
                let piece = piece_of(&ready);
                session.check_place(piece)?;
                session.taken(piece)
            }
            Step::Finish(_) | Step::Abandon(_) => Ok(()),
            _ => session.broken("records, in overwrite mode"),
        }
    }
}

const fn piece_of(ready: &v1::DistributeReady) -> Piece {
    Piece {
        position: ready.position,
        length_bytes: ready.length_bytes,
        checksum: ready.checksum,
    }
}

/// Takes the pieces of a set until it is finished or given up.
fn receive(session: &mut Session<'_>, mut put: SpreadPut<'_>, number: u64) -> Result<Done, Over> {
    let mut written = 0;
    loop {
        match session.program.hear() {
            Some(Step::Ready(ready)) if ready.put == number => {
                let piece = piece_of(&ready);
                session.check_place(piece)?;
                session.bytes.clear();
                if let Err(failure) = session.copy_out(piece) {
                    drop(put);
                    session.taken(piece)?;
                    return Ok(Done::Failed(failure));
                }
                written += u64::from(ready.length_bytes);
                // What is copied out may be written again while the units get it.
                session.taken(piece)?;
                if let Err(error) = put.write_bytes(&session.bytes) {
                    return Ok(Done::Failed(Box::new(failure_to_wire(&error))));
                }
            }
            Some(Step::Finish(finish)) if finish.put == number => {
                if finish.length_bytes != written {
                    return session.broken("a set's length is not that of its pieces");
                }
                if let Err(refused) = session.program.check_admitted() {
                    return Ok(Done::Failed(refused));
                }
                return Ok(match put.finish() {
                    Ok(receipt) => Done::Stored(receipt),
                    Err(error) => Done::Failed(Box::new(failure_to_wire(&error))),
                });
            }
            Some(Step::Abandon(abandon)) if abandon.put == number => {
                #[cfg(feature = "planted-bugs")]
                if pmu_format::planted::is_planted(pmu_format::planted::Bug::PublishAbandoned) {
                    let _ = put.finish();
                }
                return Ok(Done::Abandoned);
            }
            Some(_) => return session.broken("a message that does not belong to the set"),
            None => return Err(Over),
        }
    }
}
