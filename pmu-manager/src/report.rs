//! What commands report: the objects that `--json` prints. The names of their fields are stable; new ones may come.
//!
//! Sizes are numbers of bytes (`_bytes`), times seconds since 1970 (`_at_s`), durations seconds (`_s`) or microseconds
//! (`_us`). Ids and virtual addresses are strings of hexadecimal digits. What does not apply is `null`.
//! A failure prints a [`Failure`] on standard error.

use serde::Serialize;

use pmu_proto::v1;

use crate::{spread, words};

/// On standard error, when a command fails.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// What went wrong, for people.
    pub error: String,
    /// The reason that the unit gave (`NO_SUCH_REGION`), if one did.
    pub reason: Option<&'static str>,
    /// The exit code.
    pub exit_code: u8,
}

/// `ca init`.
#[derive(Clone, Debug, Serialize)]
pub struct AuthorityReport {
    /// The authority's name.
    pub name: String,
    /// Its directory.
    pub directory: String,
}

/// `ca issue`.
#[derive(Clone, Debug, Serialize)]
pub struct IdentityReport {
    /// The principal's name.
    pub name: String,
    /// `manager`, `client` or `unit`.
    pub role: &'static str,
    /// The identity's directory.
    pub directory: String,
    /// The last second of its validity.
    pub expires_at_s: i64,
}

/// `ca revoke`.
#[derive(Clone, Debug, Serialize)]
pub struct RevocationReport {
    /// The principal's name.
    pub name: String,
    /// How many certificates were revoked by this.
    pub revoked: usize,
    /// The list, to be copied into the units' identity directories.
    pub list: String,
}

/// `unit add` and `unit remove`, and each one of `unit list`.
#[derive(Clone, Debug, Serialize)]
pub struct UnitEntry {
    /// The unit's name.
    pub unit: String,
    /// Its control service.
    pub address: String,
}

/// `unit list`.
#[derive(Clone, Debug, Serialize)]
pub struct UnitList {
    /// In alphabetical order.
    pub units: Vec<UnitEntry>,
}

/// `status`.
#[derive(Clone, Debug, Serialize)]
pub struct StatusList {
    /// In the order asked for, or alphabetical.
    pub units: Vec<UnitStatus>,
}

/// One unit of `status`.
#[derive(Clone, Debug, Serialize)]
pub struct UnitStatus {
    /// The unit's name.
    pub unit: String,
    /// Its control service.
    pub address: String,
    /// `ready`, `locked`, `unavailable` (nobody answers) or `failed` (see `error`).
    pub state: &'static str,
    /// Its software's version.
    pub version: Option<String>,
    /// Since it started.
    pub uptime_s: Option<u64>,
    /// Sessions open.
    pub sessions: Option<usize>,
    /// Regions in all pools. `null` while locked.
    pub regions: Option<u64>,
    /// Of all pools together. `null` while locked.
    pub length_bytes: Option<u64>,
    /// Of all pools together. `null` while locked.
    pub free_bytes: Option<u64>,
    /// Why there is nothing else.
    pub error: Option<String>,
    /// 0, or what the command would exit with for this unit alone.
    pub exit_code: u8,
}

/// `unit show`.
#[derive(Clone, Debug, Serialize)]
pub struct UnitDetails {
    /// The unit's name.
    pub unit: String,
    /// Its control service.
    pub address: String,
    /// Its software's version.
    pub version: String,
    /// Serves nobody until `unit unlock`.
    pub locked: bool,
    /// Since it started.
    pub uptime_s: u64,
    /// Empty while locked.
    pub pools: Vec<PoolReport>,
    /// How data connections are made.
    pub providers: Vec<ProviderReport>,
    /// Who is connected. Empty while locked.
    pub sessions: Vec<SessionReport>,
    /// How the unit scrubs its regions by itself. `null` while locked, and where it doesn't.
    pub scrubbing: Option<ScrubbingReport>,
}

/// How a unit scrubs its regions by itself.
#[derive(Clone, Debug, Serialize)]
pub struct ScrubbingReport {
    /// From one scrub of a region to the next.
    pub every_s: u64,
    /// How fast it reads, at most.
    pub rate_bytes_per_s: u64,
    /// Whether it repairs spread regions.
    pub repairs: bool,
    /// What became of each region.
    pub regions: Vec<RegionScrubReport>,
}

/// The scrubs of a region by a unit itself. Times are seconds since 1970.
#[derive(Clone, Debug, Serialize)]
pub struct RegionScrubReport {
    /// The region.
    pub region: String,
    /// When the last one ended. `null`: never.
    pub finished_at_s: Option<u64>,
    /// The unit that did it. `null`: nobody yet.
    pub by: Option<String>,
    /// Bytes that it read. This and the next three are 0 where another unit did it.
    pub bytes: u64,
    /// What it found damaged.
    pub damaged: u64,
    /// How much of that it repaired.
    pub repaired: u64,
    /// Members that it could not read.
    pub unreadable: u64,
    /// The first few things that it found.
    pub findings: Vec<String>,
    /// When the next one begins.
    pub due_at_s: u64,
    /// Why the last attempt came to nothing.
    pub failure: Option<String>,
    /// Bytes that the one under way has read. `null`: none is.
    pub running_bytes: Option<u64>,
}

/// One pool.
#[derive(Clone, Debug, Serialize)]
pub struct PoolReport {
    /// Its name.
    pub pool: String,
    /// Its id.
    pub pool_id: String,
    /// `devdax`, `fsdax`, `hugetlbfs`, `memory` or `file`.
    pub medium: &'static str,
    /// Whether what is flushed outlives a loss of power.
    pub durable: bool,
    /// Its length.
    pub length_bytes: u64,
    /// What no region has.
    pub free_bytes: u64,
    /// The longest piece of it.
    pub largest_free_bytes: u64,
    /// Regions in it.
    pub regions: u32,
    /// Generation of its region table.
    pub generation: u64,
}

/// One provider.
#[derive(Clone, Debug, Serialize)]
pub struct ProviderReport {
    /// `verbs`, `soft-tcp` or `soft-unix`.
    pub provider: &'static str,
    /// Where it accepts data connections.
    pub addresses: Vec<String>,
    /// What its connections can prove, best first.
    pub persistence_methods: Vec<&'static str>,
}

/// One session.
#[derive(Clone, Debug, Serialize)]
pub struct SessionReport {
    /// Its number, for logs.
    pub session_id: u64,
    /// On which region.
    pub region: String,
    /// Who has it.
    pub principal: String,
    /// `primary`, `backup` or `reader`.
    pub role: &'static str,
    /// How the data connection is made.
    pub provider: &'static str,
    /// How durability is proved.
    pub persistence: &'static str,
    /// Whether its windows are bound.
    pub active: bool,
    /// The epoch it writes, or has read.
    pub epoch: u64,
    /// Since it was opened.
    pub age_s: u64,
}

/// `unit unlock`.
#[derive(Clone, Debug, Serialize)]
pub struct UnlockList {
    /// In the order asked for.
    pub units: Vec<UnlockReport>,
}

/// One unit of `unit unlock`.
#[derive(Clone, Debug, Serialize)]
pub struct UnlockReport {
    /// The unit's name.
    pub unit: String,
    /// It was not locked.
    pub was_unlocked: bool,
    /// Regions that it serves now.
    pub regions: u32,
    /// Its pools.
    pub pools: Vec<PoolReport>,
}

/// `region create`, and each one of `region list`.
#[derive(Clone, Debug, Serialize)]
pub struct RegionReport {
    /// The unit.
    pub unit: String,
    /// The region's name.
    pub region: String,
    /// Its id.
    pub region_id: String,
    /// `overwrite` or `append`.
    pub mode: &'static str,
    /// How it is spread over units; `single` if it is not, `unknown` if this version can't tell.
    pub layout: String,
    /// `active` or `erasing`.
    pub state: &'static str,
    /// `durable` or `volatile`.
    pub need: &'static str,
    /// The base of its virtual addresses, with `0x`.
    pub virtual_address: String,
    /// Its length.
    pub length_bytes: u64,
    /// Overwrite mode: sets kept.
    pub sets_kept: Option<u32>,
    /// Overwrite mode: the largest payload of a set.
    pub capacity_bytes: Option<u64>,
    /// Append mode: the length of the ring.
    pub ring_bytes: Option<u64>,
    /// The writer's generation.
    pub epoch: u64,
    /// When it was created.
    pub created_at_s: u64,
    /// In which pool. `null` after `region create`.
    pub pool: Option<String>,
    /// Who writes now.
    pub writer: Option<String>,
    /// Sessions open.
    pub sessions: u32,
}

/// `region list`.
#[derive(Clone, Debug, Serialize)]
pub struct RegionList {
    /// Unit by unit.
    pub regions: Vec<RegionReport>,
    /// Units that could not be asked.
    pub missing: Vec<MissingReport>,
    /// What the command exits with.
    #[serde(skip)]
    pub exit_code: u8,
}

/// `region show`. Of a spread region: the first member that answers, and what all members are together.
#[derive(Clone, Debug, Serialize)]
pub struct RegionDetails {
    /// The same fields as in `region list`.
    #[serde(flatten)]
    pub region: RegionReport,
    /// Where it lies, in order of virtual address.
    pub extents: Vec<ExtentReport>,
    /// Who may do what.
    pub grants: Vec<GrantReport>,
    /// Who is connected.
    pub open_sessions: Vec<SessionReport>,
    /// Its scrubs by units themselves. `null` where none does that.
    pub scrub: Option<RegionScrubReport>,
    /// All members. `null` for a region that is not spread.
    pub spread: Option<SpreadReport>,
    /// With `--placement`: unit by unit, in the order of their indices.
    pub placement: Option<Vec<PlacementReport>>,
}

/// One extent.
#[derive(Clone, Debug, Serialize)]
pub struct ExtentReport {
    /// In which pool.
    pub pool: String,
    /// Where in the pool.
    pub pool_offset_bytes: u64,
    /// How long.
    pub length_bytes: u64,
}

/// One grant.
#[derive(Clone, Debug, Serialize)]
pub struct GrantReport {
    /// To whom.
    pub principal: String,
    /// Of `read`, `write`, `append`, `clear`, `manage`.
    pub rights: Vec<String>,
}

/// `region grant` and `region revoke`.
#[derive(Clone, Debug, Serialize)]
pub struct GrantChange {
    /// The unit.
    pub unit: String,
    /// The region.
    pub region: String,
    /// What the principals have now; no rights after `region revoke`.
    pub grants: Vec<GrantReport>,
    /// Windows that became void.
    pub windows_invalidated: u32,
}

/// `region fence`.
#[derive(Clone, Debug, Serialize)]
pub struct FenceReport {
    /// The unit.
    pub unit: String,
    /// The region.
    pub region: String,
    /// The new epoch.
    pub epoch: u64,
    /// Windows that became void.
    pub windows_invalidated: u32,
    /// Sessions that ended.
    pub sessions_closed: u32,
    /// How long it took the unit.
    pub took_us: u64,
}

/// `region delete`.
#[derive(Clone, Debug, Serialize)]
pub struct DeleteReport {
    /// The unit.
    pub unit: String,
    /// The region.
    pub region: String,
    /// Sessions that ended.
    pub sessions_closed: u32,
    /// What the pool has got back.
    pub freed_bytes: u64,
}

/// `region create`: of one unit, or spread over several. No field of its own.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Created {
    /// On one unit.
    One(RegionReport),
    /// With `--layout`.
    Spread(SpreadReport),
}

/// `region fence`, `delete`, `grant` and `revoke`: of one unit, or of all members. No field of its own.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Changed<T> {
    /// On one unit.
    One(T),
    /// On all members of a spread region.
    Spread(SpreadChange<T>),
}

/// A region that is spread over several units: `region create --layout`, and `spread` in `region show`.
#[derive(Clone, Debug, Serialize)]
pub struct SpreadReport {
    /// The region's name, the same on all members.
    pub region: String,
    /// Its id, the same on all members.
    pub spread_id: String,
    /// `single`, `mirror:N`, `stripe:N`, `parity:K+1` or `erasure:K+M`.
    pub layout: String,
    /// With fewer units than this nothing is committed.
    pub units_min: u8,
    /// Counts up with each change of the members.
    pub generation: u64,
    /// Append mode: the length of the ring on each unit.
    pub ring_bytes: Option<u64>,
    /// Overwrite mode: the largest payload of a set, spread over all members; else 0.
    pub capacity_bytes: u64,
    /// How many bytes of a set lie together on one unit.
    pub subsegment_bytes: u64,
    /// How many members are active.
    pub active: usize,
    /// What can't be done with so few, with how many it takes; empty if all can.
    pub too_few_to: Vec<String>,
    /// In the order of their indices.
    pub members: Vec<MemberReport>,
}

/// One member of a spread region.
#[derive(Clone, Debug, Serialize)]
pub struct MemberReport {
    /// The unit's name.
    pub unit: String,
    /// Its place in the layout, from 0.
    pub index: usize,
    /// Where it was asked: its control service.
    pub address: String,
    /// `active`; `unreachable` (nobody answers, or locked); `missing` (no region of this name); `other region` (of this
    /// name, but not a part of this one); `older generation` or `newer generation` (of the members); `erasing`; `failed`
    /// (see `error`).
    pub state: &'static str,
    /// The writer's generation on this unit.
    pub epoch: Option<u64>,
    /// Who writes there now.
    pub writer: Option<String>,
    /// Why nothing is known.
    pub error: Option<String>,
}

/// What lies on one unit: one of `placement` in `region show --placement`.
#[derive(Clone, Debug, Serialize)]
pub struct PlacementReport {
    /// The unit's name.
    pub unit: String,
    /// Its place in the layout, from 0.
    pub index: usize,
    /// In order of their rows; what is empty is left out.
    pub shards: Vec<ShardReport>,
}

/// One shard on a unit.
#[derive(Clone, Debug, Serialize)]
pub struct ShardReport {
    /// Its redundancy group, from 0.
    pub group: u64,
    /// Its row on the unit, from 0.
    pub row: u64,
    /// `data` or `parity` (any redundancy).
    pub kind: &'static str,
    /// The subsegment that it holds; for `parity` those that it protects. From 0.
    pub subsegments: Vec<u64>,
}

/// A change on all members of a spread region.
#[derive(Clone, Debug, Serialize)]
pub struct SpreadChange<T> {
    /// The region.
    pub region: String,
    /// Its layout.
    pub layout: String,
    /// With fewer units than this nothing is committed.
    pub units_min: u8,
    /// On how many members it is done.
    pub done: usize,
    /// `region fence`: so many members are fenced that too few are left for a commit. `null` for other commands.
    pub effective: Option<bool>,
    /// `region fence`: how many members that takes. `null` for other commands.
    pub needed: Option<usize>,
    /// In the order of their indices.
    pub members: Vec<MemberChange<T>>,
    /// What the command exits with. 0: done on all members; for `region fence`: it is effective.
    pub exit_code: u8,
}

/// A change on one member.
#[derive(Clone, Debug, Serialize)]
pub struct MemberChange<T> {
    /// The unit's name.
    pub unit: String,
    /// Its place in the layout, from 0.
    pub index: usize,
    /// `done`, `missing` (for `region delete` as good as done), or why not: as in `region show`.
    pub state: &'static str,
    /// What the command reports of one unit. `null` if it is not done.
    pub report: Option<T>,
    /// Why it is not done.
    pub error: Option<String>,
    /// 0, or what the command would exit with for this unit alone.
    pub exit_code: u8,
}

/// `region verify`.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// The unit.
    pub unit: String,
    /// The region.
    pub region: String,
    /// Its pool.
    pub pool: String,
    /// Structures of the pool that were checked.
    pub structures_checked: u32,
    /// `null`: the sets or records were not checked, see `contents_note`.
    pub contents: Option<ContentsReport>,
    /// Why the sets or records were not checked.
    pub contents_note: Option<String>,
    /// What was found, of pool and region.
    pub findings: Vec<FindingReport>,
    /// A finding is `degraded` or `damaged`.
    pub damaged: bool,
    /// 0 if everything was checked and is good, 5 if something is damaged; else why not everything was checked.
    pub exit_code: u8,
}

/// What `region verify` read of the region itself.
#[derive(Clone, Debug, Serialize)]
pub struct ContentsReport {
    /// Overwrite mode: sets whose every checksum holds.
    pub sets_good: Option<u64>,
    /// Overwrite mode: the newest committed one.
    pub newest_set: Option<u64>,
    /// Append mode: records whose every checksum holds.
    pub records_good: Option<u64>,
    /// Payload bytes read and checked.
    pub bytes_checked: u64,
}

/// One finding of `region verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FindingReport {
    /// In which part of pool or region.
    pub part: String,
    /// `note`, `degraded` (another copy serves) or `damaged`.
    pub severity: &'static str,
    /// What it is.
    pub detail: String,
}

/// `man`.
#[derive(Clone, Debug, Serialize)]
pub struct ManualReport {
    /// Where the pages are.
    pub directory: String,
    /// How many.
    pub pages: usize,
}

impl From<v1::Pool> for PoolReport {
    fn from(pool: v1::Pool) -> Self {
        Self {
            pool: pool.name,
            pool_id: words::hex(&pool.pool_id),
            medium: words::medium(pool.medium),
            durable: pool.durable,
            length_bytes: pool.length_bytes,
            free_bytes: pool.free_bytes,
            largest_free_bytes: pool.largest_free_bytes,
            regions: pool.regions,
            generation: pool.generation,
        }
    }
}

impl From<v1::Scrubbing> for ScrubbingReport {
    fn from(scrubbing: v1::Scrubbing) -> Self {
        Self {
            every_s: scrubbing.every_s,
            rate_bytes_per_s: scrubbing.rate_bytes_per_s,
            repairs: scrubbing.repairs,
            regions: scrubbing.regions.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<v1::RegionScrub> for RegionScrubReport {
    fn from(scrub: v1::RegionScrub) -> Self {
        let said = |text: String| Some(text).filter(|text| !text.is_empty());
        Self {
            region: scrub.region,
            finished_at_s: Some(scrub.finished_s).filter(|seconds| *seconds > 0),
            by: said(scrub.by),
            bytes: scrub.bytes,
            damaged: scrub.damaged,
            repaired: scrub.repaired,
            unreadable: scrub.unreadable,
            findings: scrub.findings,
            due_at_s: scrub.due_s,
            failure: said(scrub.failure),
            running_bytes: scrub.running.then_some(scrub.bytes_done),
        }
    }
}

impl From<v1::ProviderStatus> for ProviderReport {
    fn from(status: v1::ProviderStatus) -> Self {
        let methods = status
            .persistence_methods
            .into_iter()
            .map(words::persistence);
        Self {
            provider: words::provider(status.provider),
            addresses: status.addresses,
            persistence_methods: methods.collect(),
        }
    }
}

impl From<v1::SessionStatus> for SessionReport {
    fn from(session: v1::SessionStatus) -> Self {
        Self {
            session_id: session.session_id,
            region: session.region,
            principal: session.principal,
            role: words::session_role(session.role),
            provider: words::provider(session.provider),
            persistence: words::persistence(session.persistence),
            active: session.active,
            epoch: session.epoch,
            age_s: session.age_s,
        }
    }
}

impl From<v1::Extent> for ExtentReport {
    fn from(extent: v1::Extent) -> Self {
        Self {
            pool: extent.pool,
            pool_offset_bytes: extent.pool_offset_bytes,
            length_bytes: extent.length_bytes,
        }
    }
}

impl From<v1::Grant> for GrantReport {
    fn from(grant: v1::Grant) -> Self {
        Self {
            principal: grant.principal,
            rights: words::rights(grant.rights),
        }
    }
}

impl From<v1::Finding> for FindingReport {
    fn from(finding: v1::Finding) -> Self {
        Self {
            part: words::pool_part(finding.part).to_owned(),
            severity: words::severity(finding.severity),
            detail: finding.detail,
        }
    }
}

impl RegionReport {
    /// From what a unit says of a region.
    pub fn new(
        unit: &str,
        region: v1::RegionDescriptor,
        pool: Option<String>,
        writer: String,
        sessions: u32,
    ) -> Self {
        let overwrite = region.mode == i32::from(v1::Mode::Overwrite);
        let log = pmu_format::LogGeometry::new(region.length_bytes)
            .ok()
            .filter(|_| !overwrite);
        Self {
            unit: unit.to_owned(),
            region: region.name,
            region_id: words::hex(&region.region_id),
            mode: words::mode(region.mode),
            layout: spread::layout_text(&region.attributes),
            state: words::state(region.state),
            need: words::need(region.need),
            virtual_address: format!("{:#x}", region.virtual_address),
            length_bytes: region.length_bytes,
            sets_kept: overwrite.then_some(region.sets_kept),
            capacity_bytes: overwrite.then_some(region.capacity_bytes),
            ring_bytes: log.map(|log| log.ring_bytes()),
            epoch: region.epoch,
            created_at_s: region.created_at_s,
            pool,
            writer: Some(writer).filter(|writer| !writer.is_empty()),
            sessions,
        }
    }
}

/// What `region rebuild` did.
#[derive(Clone, Debug, Serialize)]
pub struct RebuildReport {
    /// The region.
    pub region: String,
    /// The generation of the members now.
    pub generation: u64,
    /// The units that were given something.
    pub units: Vec<pmu_client::rebuild::RebuiltUnit>,
    /// Units that did not answer, or could not be brought up to date.
    pub missing: Vec<MissingReport>,
    /// Bytes that were read of the members for it, with what it takes to find out what is there.
    pub bytes_read: u64,
    /// Whether the region was deleted on the unit that was replaced; null if nobody asked for that.
    pub old_deleted: Option<bool>,
    /// What the command exits with.
    #[serde(skip)]
    pub exit_code: u8,
}

/// A unit that can't be used, and why.
#[derive(Clone, Debug, Serialize)]
pub struct MissingReport {
    /// The unit.
    pub unit: String,
    /// Why.
    pub reason: String,
}

/// What `region scrub` found, and did.
#[derive(Clone, Debug, Serialize)]
pub struct ScrubReport {
    /// The region.
    pub region: String,
    /// Sets that were read.
    pub sets: u32,
    /// Redundancy groups whose redundancy was held against their data.
    pub groups: u64,
    /// Groups of which it could not be.
    pub groups_incomplete: u64,
    /// Of a log: its records that a backup has not cleared yet, each read from every unit; `null` for sets.
    pub records: Option<u64>,
    /// Of a log: from where on it can't be followed, if no unit has the record that stands there.
    pub log_damage: Option<String>,
    /// What each unit holds.
    pub units: Vec<pmu_client::scrub::ScrubbedUnit>,
    /// Groups whose redundancy doesn't belong to their data.
    pub mismatches: Vec<pmu_client::scrub::Mismatch>,
    /// What units were given anew.
    pub repaired: Vec<pmu_client::rebuild::RebuiltUnit>,
    /// Units that could not be read, or be given anew what they lack.
    pub missing: Vec<MissingReport>,
    /// Whether something was not as it was written.
    pub damaged: bool,
    /// Whether all of that is right now.
    pub is_repaired: bool,
    /// What the command exits with.
    #[serde(skip)]
    pub exit_code: u8,
}

/// `region verify` of a region that is spread over several units.
#[derive(Clone, Debug, Serialize)]
pub struct SpreadVerifyReport {
    /// The region.
    pub region: String,
    /// The tables of each member's pool.
    pub units: Vec<MemberVerifyReport>,
    /// What the members hold, and whether their shares go together; `null`: not checked, see `contents_note`.
    pub contents: Option<ScrubReport>,
    /// Why the contents were not checked.
    pub contents_note: Option<String>,
    /// Something is damaged.
    pub damaged: bool,
    /// 0 if everything was checked and is good, 5 if something is damaged; else why not everything was checked.
    #[serde(skip)]
    pub exit_code: u8,
}

/// The tables of one member's pool.
#[derive(Clone, Debug, Serialize)]
pub struct MemberVerifyReport {
    /// The unit.
    pub unit: String,
    /// Structures of the pool that were checked.
    pub structures_checked: u32,
    /// What was found.
    pub findings: Vec<FindingReport>,
    /// Why they were not checked.
    pub error: Option<String>,
}

/// `region verify`: of one unit, or of all members. No field of its own.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Verified {
    /// Of one unit.
    One(VerifyReport),
    /// Of all members.
    Spread(SpreadVerifyReport),
}
