//! The work of a session in append mode: records, which are under way to the units while more of them come.

use std::collections::VecDeque;
use std::sync::Arc;

use pmu_client::distributed::wire::{failure_to_wire, missing_to_wire, proof_to_wire};
use pmu_client::{ClientError, Epoch, Receipt, SpreadLogPrimary, Ticket, UnitProof};
use pmu_proto::v1::distribute_request::Step;
use pmu_proto::v1::distribute_response::Step as Answer;
use pmu_proto::v1::{self, Failure};

use crate::program::{Heard, Over};
use crate::session::{Piece, Session, Stand, Work};

/// Records that begin in one piece at most.
const RECORDS_PER_PIECE_MAX: usize = 512;

/// A batch whose records were announced, at least the first of them.
#[derive(Default)]
struct Batch {
    lengths: Vec<u64>,
    /// The sum of them.
    bytes: u64,
    /// Its last record was announced.
    is_closed: bool,
}

/// What of the bytes of a session was given to the units.
#[derive(Default)]
struct Given {
    bytes: usize,
    last: Option<Ticket>,
}

/// Why a piece can't be given to the units.
enum Wrong {
    /// The program broke a rule.
    Rule(&'static str),
    Units(ClientError),
}

/// See the module. The bytes of records that have not come as a whole yet lie in [`Session::bytes`].
pub(crate) struct Records {
    log: SpreadLogPrimary,
    /// The last record of each piece, as long as it is not durable.
    in_flight: VecDeque<Ticket>,
    /// The batch that has not come as a whole.
    batch: Batch,
    /// What the program was told last of who has the records.
    proof: Option<(Epoch, Arc<[UnitProof]>)>,
    batch_bytes_max: u64,
}

impl Records {
    pub(crate) fn new(log: SpreadLogPrimary) -> Self {
        Self {
            log,
            in_flight: VecDeque::new(),
            batch: Batch::default(),
            proof: None,
            batch_bytes_max: 0,
        }
    }

    fn record_bytes_max(&self) -> u32 {
        let batch = u32::try_from(self.batch_bytes_max).unwrap_or(u32::MAX);
        self.log.record_bytes_max().min(batch)
    }

    /// Takes a piece, and gives the units what of it is whole.
    fn take(
        &mut self,
        session: &mut Session<'_>,
        records: &v1::DistributeRecords,
    ) -> Result<(), Over> {
        let piece = Piece {
            position: records.position,
            length_bytes: records.length_bytes,
            checksum: records.checksum,
        };
        session.check_place(piece)?;
        if records.records.len() > RECORDS_PER_PIECE_MAX {
            return session.broken("too many records in one piece");
        }
        if let Err(refused) = session.program.check_admitted() {
            return self.refuse(session, *refused);
        }
        if let Err(damaged) = session.copy_out(piece) {
            return self.refuse(session, *damaged);
        }
        session.taken(piece)?;
        let mut given = Given::default();
        let done = self.give(session, &records.records, &mut given);
        session.bytes.drain(..given.bytes);
        self.in_flight.extend(given.last);
        match done {
            Ok(()) if session.bytes.len() as u64 > self.batch.bytes => {
                session.broken("bytes that belong to no record")
            }
            Ok(()) => self.report(session),
            Err(Wrong::Rule(what)) => session.broken(what),
            Err(Wrong::Units(error)) => self.failed(session, error),
        }
    }

    /// Takes what was announced with a piece, and submits every batch that has come as a whole. A record begins in the piece with which all
    /// before it have come: so no more is held than one batch, whatever is announced.
    fn give(
        &mut self,
        session: &Session<'_>,
        announced: &[u64],
        given: &mut Given,
    ) -> Result<(), Wrong> {
        let record_bytes_max = self.record_bytes_max().into();
        for code in announced {
            let (length, continues) = (code >> 1, code & 1 == 1);
            if self.batch.bytes > (session.bytes.len() - given.bytes) as u64 {
                return Err(Wrong::Rule("a record inside the one before it"));
            }
            if self.batch.is_closed {
                self.submit(session, given)?;
            }
            let batch = &mut self.batch;
            if length == 0
                || length > record_bytes_max
                || batch.bytes + length > self.batch_bytes_max
            {
                return Err(Wrong::Rule("a record of a length that none can have"));
            }
            batch.lengths.push(length);
            batch.bytes += length;
            batch.is_closed = !continues;
        }
        let is_whole = self.batch.bytes <= (session.bytes.len() - given.bytes) as u64;
        if self.batch.is_closed && is_whole {
            self.submit(session, given)?;
        }
        Ok(())
    }

    /// Submits the batch, which has come as a whole.
    fn submit(&mut self, session: &Session<'_>, given: &mut Given) -> Result<(), Wrong> {
        let Batch { lengths, bytes, .. } = &self.batch;
        let (records, bytes) = (lengths.len() as u64, *bytes);
        let all = &session.bytes[given.bytes..given.bytes + bytes as usize];
        let submitted = match lengths[..] {
            [_] => self.log.submit(all),
            _ => {
                let mut rest = all;
                let parts = lengths.iter().map(|length| {
                    let (part, behind) = rest.split_at(*length as usize);
                    rest = behind;
                    part
                });
                let parts: Vec<_> = parts.collect();
                self.log.submit_batch(&parts)
            }
        };
        given.last = Some(submitted.map_err(Wrong::Units)?);
        given.bytes += bytes as usize;
        self.batch.lengths.clear();
        self.batch.bytes = 0;
        self.batch.is_closed = false;
        session.program.count_records(records, bytes);
        Ok(())
    }

    /// Tells the program what has become durable, as far as completions were seen.
    fn report(&mut self, session: &mut Session<'_>) -> Result<(), Over> {
        let mut durable = None;
        while let Some(ticket) = self
            .in_flight
            .front()
            .filter(|ticket| self.log.is_durable(**ticket))
        {
            durable = Some(*ticket);
            self.in_flight.pop_front();
        }
        let Some(ticket) = durable else {
            return Ok(());
        };
        match self.log.wait(ticket) {
            Ok(receipt) => self.appended(session, &receipt),
            Err(error) => self.failed(session, error),
        }
    }

    fn appended(&mut self, session: &mut Session<'_>, receipt: &Receipt) -> Result<(), Over> {
        let known = self.proof.as_ref();
        let same =
            known.is_some_and(|(epoch, units)| *epoch == receipt.epoch && *units == receipt.units);
        let mut answer = v1::DistributeAppended {
            to: receipt.position().unwrap_or_default().get(),
            term: self.log.term(),
            ..v1::DistributeAppended::default()
        };
        #[cfg(feature = "planted-bugs")]
        if pmu_format::planted::is_planted(pmu_format::planted::Bug::AcknowledgeEarly) {
            answer.to = self.log.submitted().get();
        }
        if !same {
            answer.proof = Some(proof_to_wire(receipt));
            answer.missing = missing_to_wire(self.log.missing());
            self.proof = Some((receipt.epoch, Arc::clone(&receipt.units)));
            tracing::info!(units = receipt.units.len(), "records distributed");
        }
        session.say(Answer::Appended(answer))
    }

    /// Waits for the oldest piece that is under way.
    fn wait_oldest(&mut self, session: &mut Session<'_>) -> Result<(), Over> {
        if let Some(ticket) = self.in_flight.front().copied()
            && let Err(error) = self.log.wait(ticket)
        {
            return self.failed(session, error);
        }
        self.report(session)
    }

    /// Waits until everything that was submitted is durable.
    fn settle(&mut self, session: &mut Session<'_>) -> Result<(), Over> {
        while !self.in_flight.is_empty() {
            self.wait_oldest(session)?;
        }
        Ok(())
    }

    /// The distributor's own refusal: what was submitted before is seen through, and what comes after is not looked at.
    fn refuse<T>(&mut self, session: &mut Session<'_>, failure: Failure) -> Result<T, Over> {
        self.settle(session)?;
        self.end(session, failure)
    }

    /// What the units refused. What was submitted before is seen through, if that can be: its outcome must not stay open.
    fn failed<T>(&mut self, session: &mut Session<'_>, error: ClientError) -> Result<T, Over> {
        let under_way = self.in_flight.back().copied();
        let seen_through = match under_way.filter(|_| !self.log.is_ended()) {
            Some(ticket) => self.log.wait(ticket).map(drop),
            None => Ok(()),
        };
        let error = seen_through.err().unwrap_or(error);
        self.end(session, failure_to_wire(&error))
    }

    /// The first failure ends the session: what the program sent behind it must not be appended.
    fn end<T>(&self, session: &mut Session<'_>, failure: Failure) -> Result<T, Over> {
        tracing::warn!(kind = ?failure.kind(), text = failure.text, "records not distributed");
        session.say(Answer::Failed(v1::DistributeFailed {
            put: 0,
            failure: Some(failure),
            missing: missing_to_wire(self.log.missing()),
            appended_to: Some(self.log.acknowledged().get()),
            term: self.log.term(),
            newest: 0,
        }))?;
        Err(Over)
    }

    fn look_for_room(&mut self, session: &mut Session<'_>) -> Result<(), Over> {
        match self.log.refresh_free() {
            Ok(free_bytes) => session.say(Answer::Free(v1::DistributeFree {
                free_to: self.log.submitted().get().saturating_add(free_bytes),
            })),
            Err(error) => self.failed(session, error),
        }
    }

    fn rejoin(&mut self, session: &mut Session<'_>) -> Result<(), Over> {
        self.settle(session)?;
        match self.log.rejoin() {
            Ok(back) => {
                let stand = Stand {
                    term: self.log.term(),
                    newest: 0,
                };
                session.rejoined(Ok(back), stand, self.log.missing())
            }
            Err(error) => self.failed(session, error),
        }
    }
}

impl Work for Records {
    fn opened(&mut self, distributor: &str, staging_bytes: u64) -> v1::DistributeOpened {
        self.batch_bytes_max = staging_bytes;
        let tail = self.log.submitted().get();
        // For a program that appends nothing.
        let receipt = self.log.flush().ok();
        self.proof = receipt
            .as_ref()
            .map(|receipt| (receipt.epoch, Arc::clone(&receipt.units)));
        v1::DistributeOpened {
            distributor: distributor.to_owned(),
            layout: self.log.spread().layout().to_bytes().to_vec(),
            missing: missing_to_wire(self.log.missing()),
            log: Some(v1::DistributedLog {
                tail,
                free_to: tail.saturating_add(self.log.free_bytes()),
                ring_bytes: self.log.ring_bytes(),
                record_bytes_max: self.record_bytes_max(),
                batch_bytes_max: self.batch_bytes_max,
                proof: receipt.as_ref().map(proof_to_wire),
            }),
            term: self.log.term(),
            ..v1::DistributeOpened::default()
        }
    }

    fn next(&mut self, session: &mut Session<'_>) -> Result<Option<Step>, Over> {
        loop {
            match session.program.hear_now() {
                Heard::Step(step) => return Ok(Some(*step)),
                Heard::Nothing if self.in_flight.is_empty() => {
                    return Ok(session.program.hear());
                }
                Heard::Nothing => self.wait_oldest(session)?,
                Heard::End => {
                    self.settle(session)?;
                    return Ok(None);
                }
            }
        }
    }

    fn step(&mut self, session: &mut Session<'_>, step: Step) -> Result<(), Over> {
        match step {
            Step::Records(records) => self.take(session, &records),
            Step::Room(_) => self.look_for_room(session),
            Step::Rejoin(_) => self.rejoin(session),
            _ => session.broken("sets, in append mode"),
        }
    }
}
