//! Streams of messages between a program and a distributor: in order, late, and broken at any place.

use std::collections::VecDeque;

use pmu_client::distributed::{Answer, Request};

use crate::state::{State, Wait};

/// A message on its way.
#[derive(Debug)]
pub(crate) enum Letter {
    Request(Box<Request>),
    Answer(Box<Answer>),
}

/// How a direction came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Whoever sends has ended it.
    Ordered,
    /// The stream broke, or the other end is gone.
    Broken,
}

/// One direction.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    under_way: VecDeque<Letter>,
    arrived: VecDeque<Letter>,
    /// Nothing follows what is under way.
    closed: Option<Ending>,
    /// The end has arrived.
    over: Option<Ending>,
}

impl Lane {
    fn close(&mut self, ending: Ending) {
        self.closed = self.closed.or(Some(ending));
    }

    fn has_more(&self) -> bool {
        !self.under_way.is_empty() || (self.closed.is_some() && self.over.is_none())
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Stream {
    /// The processes at both ends: the program, and its distributor.
    pub(crate) ends: [usize; 2],
    /// To each of them.
    lanes: [Lane; 2],
    /// Who has let go of its end.
    left: [bool; 2],
}

/// One end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) stream: usize,
    /// 0: the program's; 1: the distributor's.
    pub(crate) side: usize,
}

impl Stream {
    /// What may arrive: one letter, or the end.
    pub(crate) fn pending(&self) -> impl Iterator<Item = usize> {
        (0..2).filter(|side| !self.left[*side] && self.lanes[*side].has_more())
    }

    /// Whether both ends hold it.
    pub(crate) fn is_whole(&self) -> bool {
        !self.left[0] && !self.left[1] && self.lanes.iter().all(|lane| lane.closed.is_none())
    }
}

impl State {
    pub(crate) fn open_stream(&mut self, program: usize) -> usize {
        self.streams.push(Stream {
            ends: [program, program],
            lanes: [Lane::default(), Lane::default()],
            left: [false, false],
        });
        self.streams.len() - 1
    }

    /// False: the stream is broken, and whoever sends knows.
    pub(crate) fn send(&mut self, from: End, letter: Letter) -> bool {
        let stream = &mut self.streams[from.stream];
        if stream.left[from.side] || stream.lanes[from.side].over == Some(Ending::Broken) {
            return false;
        }
        let other = 1 - from.side;
        if !stream.left[other] && stream.lanes[other].closed.is_none() {
            stream.lanes[other].under_way.push_back(letter);
        }
        true
    }

    /// What has arrived; the inner none: the end.
    pub(crate) fn receive(&mut self, at: End) -> Option<Option<Letter>> {
        let lane = &mut self.streams[at.stream].lanes[at.side];
        match lane.arrived.pop_front() {
            Some(letter) => Some(Some(letter)),
            None => lane.over.map(|_| None),
        }
    }

    pub(crate) fn has_mail(&self, at: End) -> bool {
        let lane = &self.streams[at.stream].lanes[at.side];
        !lane.arrived.is_empty() || lane.over.is_some()
    }

    /// Says that nothing follows; the other direction goes on.
    pub(crate) fn close_stream(&mut self, from: End) {
        self.streams[from.stream].lanes[1 - from.side].close(Ending::Ordered);
    }

    /// One end is gone, or has let go. What has left it may still arrive.
    pub(crate) fn leave_stream(&mut self, at: End, ending: Ending) {
        let stream = &mut self.streams[at.stream];
        if std::mem::replace(&mut stream.left[at.side], true) {
            return;
        }
        let lane = &mut stream.lanes[1 - at.side];
        if ending == Ending::Broken {
            let kept = self.random.below(1 + lane.under_way.len() as u64) as usize;
            lane.under_way.truncate(kept);
        }
        lane.close(ending);
    }

    /// The stream breaks between its ends.
    pub(crate) fn break_stream(&mut self, stream: usize) {
        note!(
            self,
            "the stream between {} and {} breaks",
            self.processes[self.streams[stream].ends[0]].name,
            self.processes[self.streams[stream].ends[1]].name
        );
        for side in 0..2 {
            let lane = &mut self.streams[stream].lanes[side];
            let kept = self.random.below(1 + lane.under_way.len() as u64) as usize;
            lane.under_way.truncate(kept);
            lane.close(Ending::Broken);
        }
    }

    /// A program is killed: its ends of all streams are gone.
    pub(crate) fn leave_streams_of(&mut self, process: usize) {
        for stream in 0..self.streams.len() {
            for side in 0..2 {
                if self.streams[stream].ends[side] == process {
                    self.leave_stream(End { stream, side }, Ending::Broken);
                }
            }
        }
    }

    /// The next letter of a direction arrives, or its end.
    pub(crate) fn deliver_letter(&mut self, to: End) {
        let name = &self.processes[self.streams[to.stream].ends[to.side]].name;
        let lane = &mut self.streams[to.stream].lanes[to.side];
        match lane.under_way.pop_front() {
            Some(letter) => {
                note!(self, "{name} is told: {}", words(&letter));
                self.streams[to.stream].lanes[to.side]
                    .arrived
                    .push_back(letter);
            }
            None => {
                lane.over = lane.closed;
                note!(self, "{name} sees the end of its stream");
            }
        }
        self.wake(|wait| wait == Wait::Mail(to));
    }
}

/// A letter in a line of the trace.
fn words(letter: &Letter) -> &'static str {
    match letter {
        Letter::Request(request) => match **request {
            Request::Open(_) => "open",
            Request::Attach(_) => "attach",
            Request::Connected(_) => "connected",
            Request::Begin(_) => "begin a set",
            Request::Ready(_) => "a piece is ready",
            Request::Finish(_) => "finish the set",
            Request::Abandon(_) => "abandon the set",
            Request::Rejoin(_) => "rejoin",
            Request::Records(_) => "records are ready",
            Request::Room(_) => "look for room",
        },
        Letter::Answer(answer) => match **answer {
            Answer::Opened(_) => "opened",
            Answer::Staging(_) => "staging memory",
            Answer::Window(_) => "a window",
            Answer::Taken(_) => "a piece is taken",
            Answer::Stored(_) => "the set is stored",
            Answer::Failed(_) => "failed",
            Answer::Rejoined(_) => "rejoined",
            Answer::Granted(_) => "units have granted",
            Answer::Appended(_) => "records are appended",
            Answer::Free(_) => "there is room",
        },
    }
}
