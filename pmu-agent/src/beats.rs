//! The thread that looks at the region's beat.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pmu_client::{BeatWatch, Mode};

use crate::config::Config;
use crate::decide::Event;
use crate::error::{AgentError, Result};
use crate::input::Input;
use crate::place::Place;
use crate::status::Shared;

/// Between two attempts to reach the units.
const RETRY: Duration = Duration::from_millis(200);

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
    let send = |event| inputs.send(Input::Event(event)).is_ok();
    while !stop.load(Ordering::Acquire) {
        match open(place, region, mode) {
            Ok(watch) => {
                send(Event::Units { reachable: true });
                look(watch, every, status, stop, &send);
            }
            Err(error) => tracing::debug!(%error, "beats can't be seen"),
        }
        if !send(Event::Units { reachable: false }) {
            return;
        }
        std::thread::sleep(RETRY);
    }
}

fn open(place: &Place, region: &str, mode: Mode) -> Result<BeatWatch> {
    let find = place.find(region);
    let way = find.map_err(AgentError::client("find the region of the beat"))?;
    way.watch_beats(mode, place.options())
        .map_err(AgentError::client("open the region of the beat"))
}

/// Until no unit answers.
fn look(
    mut watch: BeatWatch,
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
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "beats can't be seen any more");
                return;
            }
        }
        std::thread::sleep(every);
    }
}
