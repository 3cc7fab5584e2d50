//! How a session with a distributor begins.

use std::sync::Arc;
use std::time::Duration;

use pmu_auth::{Identity, PrincipalName};
use pmu_fabric::{AccessWindow, ConnectToken, Connection, Provider};
use pmu_format::{Mode, RegionName};
use pmu_proto::v1;
use pmu_stripe::Layout;

use super::stream::Stream;
use super::way::{Answer, Heard, Request, Way};
use super::wire;
use crate::agent::Epochs;
use crate::control::{Control, chain};
use crate::error::{ClientError, Result};
use crate::options::{ConnectOptions, OpenOptions, PersistenceChoice};
use crate::provider::{method_from_wire, method_to_wire, to_wire};
use crate::unit::window;

/// What opening takes on top of the time for each step: the distributor's own connections.
const OPEN_STEPS: u32 = 4;

/// The staging memory, as the distributor gives it out.
pub(super) struct Staging {
    pub(super) connection: Box<dyn Connection>,
    pub(super) window: AccessWindow,
    pub(super) piece_bytes_max: u32,
}

/// A session that is open.
pub(super) struct Begun {
    pub(super) way: Box<dyn Way>,
    pub(super) opened: v1::DistributeOpened,
    pub(super) layout: Layout,
    pub(super) staging: Staging,
    /// What this program goes on from.
    pub(super) epochs: Arc<Epochs>,
}

/// The way to a distributor over the network. Errors as [`super::Distributed::connect`].
pub(super) fn way(
    address: &str,
    region: &str,
    identity: &Identity,
    connect: &ConnectOptions,
) -> Result<Box<dyn Way>> {
    region
        .parse::<RegionName>()
        .map_err(|error| ClientError::Invalid(error.to_string()))?;
    let name: Option<PrincipalName> = match &connect.unit_name {
        Some(name) => Some(
            name.parse()
                .map_err(|error| ClientError::Invalid(chain(&error)))?,
        ),
        None => None,
    };
    let control = Control::connect(
        address,
        identity,
        name.as_ref(),
        connect.timeout,
        connect.request_timeout,
    )?;
    Ok(Box::new(Stream::begin(control)?))
}

/// Opens a session for a region of `mode`. Errors as [`super::Distributed::connect`].
pub(super) fn begin(
    way: Box<dyn Way>,
    region: &str,
    options: &OpenOptions,
    mode: Mode,
    epochs: Arc<Epochs>,
) -> Result<Begun> {
    let mut opening = Opening {
        way,
        region,
        mode,
        epochs,
        patience: options.timeouts.open.saturating_mul(OPEN_STEPS),
    };
    match opening.open(options) {
        Ok((opened, layout, staging)) => Ok(Begun {
            way: opening.way,
            opened,
            layout,
            staging,
            epochs: opening.epochs,
        }),
        Err(error) => {
            opening.way.close();
            Err(error)
        }
    }
}

struct Opening<'a> {
    way: Box<dyn Way>,
    region: &'a str,
    mode: Mode,
    epochs: Arc<Epochs>,
    patience: Duration,
}

impl Opening<'_> {
    fn open(&mut self, options: &OpenOptions) -> Result<(v1::DistributeOpened, Layout, Staging)> {
        let persistence = match options.persistence {
            PersistenceChoice::Auto => v1::PersistenceMethod::Unspecified,
            PersistenceChoice::Forced(method) => method_to_wire(method),
        };
        let goes_on_from = self.epochs.of_region(self.region)?;
        let is_held = !goes_on_from.is_empty();
        let ms = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let open = Request::Open(v1::DistributeOpen {
            region: self.region.to_owned(),
            mode: wire::mode_to_wire(self.mode).into(),
            persistence: persistence.into(),
            open_ms: ms(options.timeouts.open),
            stall_ms: ms(options.timeouts.stall),
            goes_on_from: wire::epochs_to_wire(&goes_on_from),
        });
        let opened = match self.ask(open)? {
            Answer::Opened(opened) => opened,
            other => return Err(self.failed(other)),
        };
        if is_held && opened.granted.is_empty() {
            return Err(protocol(
                "it is of an earlier version, and doesn't look at what this program goes on from",
            ));
        }
        wire::take_granted(&self.epochs, self.region, &opened.granted);
        let layout: Option<[u8; 3]> = opened.layout.as_slice().try_into().ok();
        let layout = layout.and_then(|bytes| Layout::from_bytes(bytes).ok());
        let layout = layout.ok_or_else(|| protocol("an unknown layout"))?;
        let mut tried = Vec::new();
        for provider in self.way.providers(options.provider) {
            match self.attach(provider, options)? {
                Ok(staging) => return Ok((opened, layout, staging)),
                Err(reason) => tried.push(format!("{provider}: {reason}")),
            }
        }
        Err(ClientError::NoProvider {
            unit: self.way.address().to_owned(),
            reason: tried.join("; "),
        })
    }

    /// Makes the data connection by one provider; why not, if another one may do.
    fn attach(
        &self,
        provider: Provider,
        options: &OpenOptions,
    ) -> Result<std::result::Result<Staging, String>> {
        let attach = Request::Attach(v1::DistributeAttach {
            provider: to_wire(provider).into(),
        });
        let staging = match self.ask(attach)? {
            Answer::Staging(staging) => staging,
            other => match self.failed(other) {
                ClientError::NoProvider { reason, .. } => return Ok(Err(reason)),
                error => return Err(error),
            },
        };
        let token: [u8; 32] = staging
            .connect_token
            .as_slice()
            .try_into()
            .map_err(|_| protocol("a bad connect token"))?;
        let method = method_from_wire(staging.persistence)
            .ok_or_else(|| protocol("an unknown persistence method"))?;
        let address = staging.address.unwrap_or_default();
        let timeout = options.timeouts.open;
        let made = self.way.connect(
            provider,
            &address.address,
            ConnectToken(token),
            method,
            timeout,
        );
        let connection = match made {
            Ok(connection) => connection,
            Err(error) => return Ok(Err(format!("{}: {}", address.address, chain(&error)))),
        };
        let window = match self.ask(Request::Connected(v1::DistributeConnected {}))? {
            Answer::Window(answer) => window(&answer.window.unwrap_or_default()),
            other => return Err(self.failed(other)),
        };
        if window.length == 0
            || window.length != staging.length_bytes
            || window.address.checked_add(window.length).is_none()
            || staging.piece_bytes_max == 0
        {
            return Err(protocol("unusable staging memory"));
        }
        Ok(Ok(Staging {
            connection,
            window,
            piece_bytes_max: staging.piece_bytes_max,
        }))
    }

    fn ask(&self, request: Request) -> Result<Answer> {
        let asked = self.way.now();
        // Whether the stream is over stands in the answers.
        let _ = self.way.say(request);
        let mut heard = self.way.hear(self.patience);
        while let Heard::Answer(answer) = &heard
            && let Answer::Granted(granted) = &**answer
        {
            wire::take_granted(&self.epochs, self.region, &granted.granted);
            heard = self.way.hear(self.patience);
        }
        match heard {
            Heard::Answer(answer) => Ok(*answer),
            Heard::End(status) => Err(self.way.refused(status.as_ref(), self.region)),
            Heard::Nothing => Err(ClientError::TimedOut {
                what: "open the region by way of the distributor",
                waited_ms: self.way.now().saturating_duration_since(asked).as_millis() as u64,
            }),
        }
    }

    fn failed(&self, answer: Answer) -> ClientError {
        match answer {
            Answer::Failed(failed) => {
                let failure = failed.failure.unwrap_or_default();
                wire::failure_from_wire(&failure, self.way.address())
            }
            _ => protocol("it answered what was not asked"),
        }
    }
}

fn protocol(what: &str) -> ClientError {
    ClientError::Protocol(format!("distributor: {what}"))
}
