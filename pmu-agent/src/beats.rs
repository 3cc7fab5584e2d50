//! The thread that looks at the region's beat.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pmu_client::{BeatWatch, Mode, OpenOptions};

use crate::config::Config;
use crate::decide::Event;
use crate::error::{AgentError, Result};
use crate::input::Input;
use crate::place::Place;
use crate::status::Shared;

/// Between two attempts to reach the units.
const RETRY: Duration = Duration::from_millis(200);
/// Between two attempts to reach units that are missing.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Looks until `stop` is set: four times in each interval of beats.
pub fn run(
    place: &Place,
    config: &Config,
    inputs: &Sender<Input>,
    status: &Mutex<Shared>,
    stop: &Arc<AtomicBool>,
) {
    let Some((region, is_log)) = config.beat_region() else {
        return;
    };
    let every = Duration::from_millis((config.watch.interval_ms / 4).max(1));
    let mode = if is_log {
        Mode::Append
    } else {
        Mode::Overwrite
    };
    let options = config.watch_options();
    let send = |event| inputs.send(Input::Event(event)).is_ok();
    while !stop.load(Ordering::Acquire) {
        match open(place, region, mode, &options) {
            Ok(watch) => {
                send(Event::Units { reachable: true });
                let again = Again::new(place, region, mode, &options);
                look(watch, again, every, status, stop, &send);
            }
            Err(error) => tracing::debug!(%error, "beats can't be seen"),
        }
        if !send(Event::Units { reachable: false }) {
            return;
        }
        std::thread::sleep(RETRY);
    }
}

fn open(place: &Place, region: &str, mode: Mode, options: &OpenOptions) -> Result<BeatWatch> {
    let find = place.find(region);
    let way = find.map_err(AgentError::client("find the region of the beat"))?;
    way.watch_beats(mode, options)
        .map_err(AgentError::client("open the region of the beat"))
}

/// Until no unit answers.
fn look(
    mut watch: BeatWatch,
    mut again: Again,
    every: Duration,
    status: &Mutex<Shared>,
    stop: &AtomicBool,
    send: &impl Fn(Event) -> bool,
) {
    let mut seen = 0;
    while !stop.load(Ordering::Acquire) {
        match watch.look() {
            Ok(found) if found.changes > seen => {
                seen = found.changes;
                status.lock().beat_at = Some(Instant::now());
                send(Event::Beat);
            }
            Ok(_) => {
                if let Some(better) = again.in_place_of(&watch) {
                    (watch, seen) = (better, 0);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "beats can't be seen any more");
                return;
            }
        }
        std::thread::sleep(every);
    }
}

/// Opens the region once more while units are missing, in a thread of its own: nobody waits for them.
struct Again {
    place: Place,
    region: String,
    mode: Mode,
    options: OpenOptions,
    tried: Instant,
    opening: Option<JoinHandle<Result<BeatWatch>>>,
}

impl Again {
    fn new(place: &Place, region: &str, mode: Mode, options: &OpenOptions) -> Self {
        Self {
            place: place.clone(),
            region: region.to_owned(),
            mode,
            options: *options,
            tried: Instant::now(),
            opening: None,
        }
    }

    /// A watch that sees more units than this one, if there is one by now.
    fn in_place_of(&mut self, watch: &BeatWatch) -> Option<BeatWatch> {
        let missing = watch.missing().count();
        if let Some(opening) = self.opening.take_if(|opening| opening.is_finished()) {
            let opened = opening.join().ok().and_then(Result::ok);
            return opened.filter(|better| better.missing().count() < missing);
        }
        if missing > 0 && self.opening.is_none() && self.tried.elapsed() >= LOOK_AGAIN {
            self.tried = Instant::now();
            let (place, region) = (self.place.clone(), self.region.clone());
            let (mode, options) = (self.mode, self.options);
            let thread = std::thread::Builder::new().name("beats-again".into());
            let opening = thread.spawn(move || open(&place, &region, mode, &options));
            self.opening = opening.ok();
        }
        None
    }
}
