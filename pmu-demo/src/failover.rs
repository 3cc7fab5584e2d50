//! One failure that two agents deal with by themselves: here the programs are watched, and one is killed, and nothing else is done.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

use crate::child::{Child, Output};
use crate::clock::{ms_between, now_ns};
use crate::error::{DemoError, Result};
use crate::event::{Event, Proof, Totals};
use crate::failure::Failure;
use crate::history::{History, Leading, Onlooker};
use crate::report::{RunReport, TakeoverParts};
use crate::run::{Choice, Observed, Plan, give_word, same_bytes};
use crate::site::{LOG_REGION, STATE_REGION, Site, free_port};
use crate::tools::arguments;

/// How often the standby is asked whether it follows.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Between two snapshots that the agent causes.
const SNAPSHOT_EVERY_MS: u64 = 200;

/// Who said it: the first agent's program, or the second's.
type Said = (usize, Result<Option<Event>>);

/// What became known of one agent's program.
#[derive(Debug, Default)]
struct Seen {
    process: Option<OwnedFd>,
    begun_ns: u64,
    recovered_ns: u64,
    resumed_ns: u64,
    recovered: u32,
    set_documents: u32,
    tail: (u64, u64),
    acknowledged: u32,
    totals: Totals,
    proof: Option<Proof>,
    pauses_us: Vec<u64>,
    stopped_by: Option<String>,
    waiting: bool,
    finished: bool,
    ended: bool,
}

struct Failover<'a> {
    plan: &'a Plan,
    site: &'a mut Site,
    choice: &'a Choice,
    /// The word to do the last document: a file.
    last_after: PathBuf,
    agents: [Option<Child>; 2],
    sockets: [PathBuf; 2],
    seen: [Seen; 2],
    history: History,
    /// None when it has said what it found.
    onlooker: Option<Onlooker>,
    sender: Sender<Said>,
    said: Receiver<Said>,
    deadline: Instant,
}

/// Carries out one run. `None`: the program was starved and taken for a hung one before it was made to fail, so that nothing was shown.
///
/// # Errors
/// [`DemoError::Process`] for whoever failed, with its last words.
pub fn carry_out(plan: &Plan, site: &mut Site, choice: &Choice) -> Result<Option<RunReport>> {
    let begun_ns = now_ns();
    site.create_regions()?;
    let result = plan.folder.join(format!("run-{}.index", choice.run));
    let (sender, said) = channel();
    let folder = plan.folder.clone();
    let onlooker = Some(plan.look_on(site)?);
    let mut run = Failover {
        plan,
        site,
        choice,
        last_after: plan.word_for_the_last(choice.run)?,
        agents: [None, None],
        sockets: ["a.socket", "b.socket"].map(|name| folder.join(name)),
        seen: [Seen::default(), Seen::default()],
        history: History::new(["the first agent's program", "the second agent's program"]),
        onlooker,
        sender,
        said,
        deadline: Instant::now() + plan.tools.timeout(),
    };
    match run.work(begun_ns, &result) {
        Ok(report) => run.end(report),
        Err(error) => {
            run.hear_what_is_left();
            let onlooker = run.onlooker.take();
            Err(run.history.explain(error, onlooker))
        }
    }
}

impl Failover<'_> {
    fn work(&mut self, begun_ns: u64, result: &Path) -> Result<Option<RunReport>> {
        self.start_agents(result)?;
        let Some(failed_ns) = self.until_failure()? else {
            // Whoever is taken for dead and lives is the most likely second leader.
            return match self.leading()?.violation {
                Some(violation) => Err(DemoError::Unusable(violation)),
                None => Ok(None),
            };
        };
        give_word(&self.last_after)?;
        self.until(|run| run.seen[1].resumed_ns > failed_ns)?;
        self.see_through(begun_ns, failed_ns, result).map(Some)
    }

    /// Sees the second instance to the end of the work, and a zombie to its own.
    fn see_through(&mut self, begun_ns: u64, failed_ns: u64, result: &Path) -> Result<RunReport> {
        // Only now: what the agent says of itself costs time.
        let status = self.ask_status(1)?;
        if self.plan.zombie {
            self.signal(0, Signal::CONT)?;
            self.until(|run| run.seen[0].stopped_by.is_some())?;
        }
        self.until(|run| run.seen[1].finished && run.seen[1].ended)?;
        let leading = self.leading()?;
        let identical = same_bytes(&self.plan.answer, result)?;
        if identical {
            fs::remove_file(result).map_err(DemoError::file("remove", result))?;
        }
        self.report((begun_ns, failed_ns), (identical, leading), &status)
    }

    /// Who led until now, by what they said and by what is and was in the log.
    fn leading(&mut self) -> Result<Leading> {
        let log = self.onlooker.take().map(Onlooker::finish).transpose()?;
        Ok(self.history.judge(&log.unwrap_or_default()))
    }

    fn start_agents(&mut self, result: &Path) -> Result<()> {
        let ports = [free_port()?, free_port()?];
        // The standby first: a fast program must not be done before it is followed.
        for (which, role) in [(1, "standby"), (0, "primary")] {
            let name = format!("run-{}-agent-{}", self.choice.run, which + 1);
            let config = self.plan.folder.join(format!("{name}.toml"));
            let text = self.config(which, ports, result)?;
            fs::write(&config, text).map_err(DemoError::file("write", &config))?;
            let command = arguments!["run", "--role", role, "--config", &config];
            let started = self
                .plan
                .tools
                .start("pmu-agent", &command, &name, Output::Piped, &[]);
            let mut agent = started?;
            self.listen(which, &mut agent);
            self.agents[which] = Some(agent);
            match which {
                0 => self.wait_until_followed()?,
                _ => self.wait_until_it_answers(which)?,
            }
        }
        Ok(())
    }

    fn config(&self, which: usize, ports: [u16; 2], result: &Path) -> Result<String> {
        let plan = self.plan;
        let identities = [self.site.primary_identity(), self.site.backup_identity()];
        let program = plan.tools.need("pmu-demo")?;
        let bytes = plan.set_every_bytes.to_string();
        let mut command = vec![program.display().to_string(), "program".into()];
        for (flag, value) in [
            ("--units", self.site.addresses.join(",")),
            ("--identity", identities[which].display().to_string()),
            ("--transport", plan.transport.name().to_owned()),
            ("--list", plan.list.display().to_string()),
            ("--result", result.display().to_string()),
            ("--set-every-bytes", bytes),
            ("--arena-bytes", plan.arena_bytes.to_string()),
            ("--last-after", self.last_after.display().to_string()),
        ] {
            command.extend([flag.to_owned(), value]);
        }
        let peer = Site::PRINCIPALS[1 - which];
        // Slow machines, and emulated ones, need longer silences: failures are told, so that nothing waits for them but a hang.
        let text = format!(
            "identity = {:?}\nunits = {:?}\ntransport = {:?}\nsocket = {:?}\nlisten = \"127.0.0.1:{}\"\n\
             [peer]\nname = {peer:?}\naddress = \"127.0.0.1:{}\"\n\
             [regions]\nlog = {LOG_REGION:?}\nsets = {STATE_REGION:?}\n\
             [program]\ncommand = {command:?}\nstart_timeout_ms = 60000\n\
             [watch]\ninterval_ms = 50\nintervals = 40\nkill_hung = {}\n\
             [follow]\nevery_ms = 2\nsets_every_ms = 50\n\
             [snapshot]\nevery_ms = {SNAPSHOT_EVERY_MS}\n",
            identities[which],
            self.site.addresses,
            plan.transport.name(),
            self.sockets[which],
            ports[which],
            ports[1 - which],
            !plan.zombie,
        );
        Ok(text)
    }

    /// Passes on what the agent's program says, from a thread of its own: it has the agent's standard output.
    fn listen(&self, which: usize, agent: &mut Child) {
        let (Some(mut output), to) = (agent.output(), self.sender.clone()) else {
            return;
        };
        std::thread::spawn(move || {
            loop {
                let said = Event::receive(&mut output);
                let last = !matches!(said, Ok(Some(_)));
                if to.send((which, said)).is_err() || last {
                    return;
                }
            }
        });
    }

    fn ask_status(&self, which: usize) -> Result<Value> {
        let action = "ask an agent how it is";
        let failed = || DemoError::system::<std::io::Error>(action);
        let mut stream = UnixStream::connect(&self.sockets[which]).map_err(failed())?;
        stream
            .write_all(b"{\"command\":\"status\"}\n")
            .map_err(failed())?;
        let mut line = String::new();
        BufReader::new(stream)
            .read_line(&mut line)
            .map_err(failed())?;
        let mut answer: Value =
            serde_json::from_str(&line).map_err(|error| failed()(error.into()))?;
        Ok(answer["status"].take())
    }

    fn wait_until_it_answers(&mut self, which: usize) -> Result<()> {
        while self.ask_status(which).is_err() {
            self.hear(Some(LOOK_AGAIN))?;
        }
        Ok(())
    }

    fn wait_until_followed(&mut self) -> Result<()> {
        loop {
            self.hear(Some(LOOK_AGAIN))?;
            let follows = self.ask_status(1).is_ok_and(|status| {
                status["peer"] == "primary"
                    && status["caught_up"] == true
                    && !status["since_beat_ms"].is_null()
            });
            if follows || self.taken_over() {
                return Ok(());
            }
        }
    }

    fn until_failure(&mut self) -> Result<Option<u64>> {
        let bytes = self.plan.corpus.bytes().max(1) as f64;
        let mut failure = Failure::at(self.choice.share, Instant::now());
        loop {
            let now = Instant::now();
            let done = self.plan.corpus.bytes_before(self.seen[0].acknowledged);
            failure.progress(done as f64 / bytes, now);
            if self.seen[0].waiting {
                failure.nothing_more(now);
            }
            match failure.due_in(now) {
                Some(Duration::ZERO) => break,
                due => self.hear(due)?,
            }
            if self.taken_over() {
                return Ok(None);
            }
        }
        let failed_ns = now_ns();
        self.signal(
            0,
            if self.plan.zombie {
                Signal::STOP
            } else {
                Signal::KILL
            },
        )?;
        Ok(Some(failed_ns))
    }

    /// Whether the second agent has started its program.
    fn taken_over(&self) -> bool {
        self.seen[1].begun_ns > 0
    }

    fn signal(&self, which: usize, signal: Signal) -> Result<()> {
        match &self.seen[which].process {
            Some(process) => {
                pidfd_send_signal(process, signal).map_err(DemoError::system("signal the program"))
            }
            None => Ok(()),
        }
    }

    fn until(&mut self, done: impl Fn(&Self) -> bool) -> Result<()> {
        while !done(self) {
            self.hear(None)?;
        }
        Ok(())
    }

    fn hear(&mut self, at_most: Option<Duration>) -> Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.said.recv_timeout(at_most.unwrap_or(left).min(left)) {
            Ok((which, said)) => {
                self.deadline = Instant::now() + self.plan.tools.timeout();
                self.heard(which, said?)
            }
            Err(_) if at_most.is_some() && !left.is_zero() => Ok(()),
            Err(_) => {
                self.site.check_units()?;
                let problem = format!("silent for {} s", self.plan.tools.timeout().as_secs());
                let agent = self.agents.iter().flatten().next_back();
                Err(agent.map_or_else(
                    || DemoError::Unusable("no agent runs".into()),
                    |agent| agent.failed(&problem),
                ))
            }
        }
    }

    /// Of a run that has failed: who led is still of interest.
    fn hear_what_is_left(&mut self) {
        while let Ok((which, said)) = self.said.try_recv() {
            if let Ok(Some(event)) = said {
                // Why the run has failed is known already.
                let _ = self.history.heard(which, &event);
            }
        }
    }

    fn heard(&mut self, which: usize, event: Option<Event>) -> Result<()> {
        if let Some(event) = &event {
            self.history.heard(which, event)?;
        }
        let seen = &mut self.seen[which];
        match event {
            Some(Event::Begun { at_ns, pid }) => {
                seen.begun_ns = at_ns;
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
                let opened = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
                seen.process = opened;
            }
            Some(Event::Recovered {
                at_ns,
                documents,
                set_documents,
                tail_records,
                tail_bytes,
            }) => {
                seen.recovered_ns = at_ns;
                (seen.recovered, seen.set_documents) = (documents, set_documents);
                seen.tail = (tail_records, tail_bytes);
            }
            Some(Event::Acknowledged {
                documents, totals, ..
            }) => {
                (seen.acknowledged, seen.totals) = (documents, totals);
            }
            Some(Event::Committed { totals, .. }) => seen.totals = totals,
            Some(Event::Proved { proof }) => seen.proof = Some(proof),
            Some(Event::Resumed { at_ns }) => seen.resumed_ns = at_ns,
            Some(Event::Snapshot { pause_us, .. }) => seen.pauses_us.push(pause_us),
            Some(Event::StoppedByFence { message }) => seen.stopped_by = Some(message),
            Some(Event::Finished { totals, .. }) => (seen.finished, seen.totals) = (true, totals),
            Some(Event::Waiting) => seen.waiting = true,
            Some(
                Event::Following
                | Event::Detected { .. }
                | Event::Fenced { .. }
                | Event::Opened { .. },
            ) => {}
            None => {
                seen.ended = true;
                let finished = seen.finished;
                if let (false, Some(agent)) = (finished, &self.agents[which]) {
                    self.site.check_units()?;
                    return Err(agent.failed("the agent has ended"));
                }
            }
        }
        Ok(())
    }

    fn report(
        &self,
        (begun_ns, failed_ns): (u64, u64),
        (identical, leading): (bool, Leading),
        status: &Value,
    ) -> Result<RunReport> {
        let [primary, backup] = &self.seen;
        let proof = primary.proof.clone();
        let proof =
            proof.ok_or_else(|| DemoError::Unusable("killed before its first receipt".into()))?;
        let fence_us = status["fence_us"].as_u64().unwrap_or(0);
        let recovery_us = status["recovery_us"].as_u64().unwrap_or(0);
        let taken_ms = (fence_us + recovery_us) as f64 / 1e3;
        let mut pauses_us = primary.pauses_us.clone();
        pauses_us.extend(&backup.pauses_us);
        Ok(self.plan.report(
            self.choice,
            Observed {
                identical,
                proof,
                totals: [primary.totals, backup.totals],
                leading,
                acknowledged: primary.acknowledged,
                recovered: backup.recovered,
                set_documents: backup.set_documents,
                tail: backup.tail,
                stopped_by: primary.stopped_by.clone(),
                begun_ns,
                failed_ns,
                resumed_ns: backup.resumed_ns,
                takeover: TakeoverParts {
                    detected_ms: (ms_between(failed_ns, backup.begun_ns) - taken_ms).max(0.0),
                    fenced_ms: fence_us as f64 / 1e3,
                    recovered_ms: recovery_us as f64 / 1e3
                        + ms_between(backup.begun_ns, backup.recovered_ns),
                    resumed_ms: ms_between(backup.recovered_ns, backup.resumed_ns),
                },
                fence_us,
                units_killed: Vec::new(),
                pauses_us,
            },
        ))
    }

    /// Ends the agents, has the units' side checked, and its regions removed.
    fn end(mut self, report: Option<RunReport>) -> Result<Option<RunReport>> {
        for agent in self.agents.iter_mut().flatten() {
            agent.signal(Signal::TERM);
        }
        for agent in self.agents.iter_mut().flatten() {
            agent.wait_for_success(self.plan.tools.timeout())?;
        }
        self.site.verify_regions()?;
        self.site.delete_regions()?;
        Ok(report)
    }
}

impl Drop for Failover<'_> {
    /// Agents end with their handles; their programs are not our children.
    fn drop(&mut self) {
        for seen in &self.seen {
            if let Some(process) = &seen.process {
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
        }
    }
}
