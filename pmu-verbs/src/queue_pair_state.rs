//! Moving a queue pair through its states by hand, without the connection manager.

use std::sync::Arc;

use crate::device::Gid;
use crate::error::VerbsError;
use crate::memory_region::Access;
use crate::queue_pair::QueuePair;
use crate::sys::verbs::*;

/// Where a peer's queue pair is, for [`QueuePair::to_ready_to_receive`].
#[derive(Debug, Clone, Copy)]
pub struct PeerQueuePair {
    /// Its number.
    pub number: u32,
    /// The address of its port.
    pub gid: Gid,
    /// The local port to use, from 1.
    pub port: u8,
    /// Where the local address stands in that port's table.
    pub local_gid_index: u8,
    /// How many READs, FLUSHes and atomic operations of the peer are served at once.
    pub responder_resources: u8,
}

impl QueuePair {
    /// From [`QueuePairState::Reset`](crate::QueuePairState::Reset): says which port it uses and
    /// what the peer may do (remote and flush rights).
    ///
    /// # Errors
    /// What the provider said; EINVAL from another state.
    pub fn to_init(&self, port: u8, access: Access) -> Result<(), VerbsError> {
        let mut raw = ibv_qp_attr {
            qp_state: IBV_QPS_INIT,
            port_num: port,
            qp_access_flags: access.bits(),
            ..Default::default()
        };
        let mask = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
        self.inner().modify(&mut raw, mask)
    }

    /// From `Init`: names the peer, by its global address (RoCE), with packets of 1024 bytes.
    ///
    /// # Errors
    /// What the provider said; EINVAL from another state or for an address that has no way.
    pub fn to_ready_to_receive(&self, peer: &PeerQueuePair) -> Result<(), VerbsError> {
        let mut raw = ibv_qp_attr {
            qp_state: IBV_QPS_RTR,
            path_mtu: IBV_MTU_1024,
            dest_qp_num: peer.number,
            max_dest_rd_atomic: peer.responder_resources,
            min_rnr_timer: 12,
            ah_attr: ibv_ah_attr {
                grh: ibv_global_route {
                    dgid: ibv_gid { raw: peer.gid.0 },
                    sgid_index: peer.local_gid_index,
                    hop_limit: 64,
                    ..Default::default()
                },
                is_global: 1,
                port_num: peer.port,
                ..Default::default()
            },
            ..Default::default()
        };
        let mask = IBV_QP_STATE
            | IBV_QP_AV
            | IBV_QP_PATH_MTU
            | IBV_QP_DEST_QPN
            | IBV_QP_RQ_PSN
            | IBV_QP_MAX_DEST_RD_ATOMIC
            | IBV_QP_MIN_RNR_TIMER;
        self.inner().modify(&mut raw, mask)
    }

    /// From `ReadyToReceive`: may do work, with `initiator_depth` READs, FLUSHes and atomic
    /// operations outstanding at once.
    ///
    /// # Errors
    /// What the provider said; EINVAL from another state.
    pub fn to_ready_to_send(&self, initiator_depth: u8) -> Result<(), VerbsError> {
        let mut raw = ibv_qp_attr {
            qp_state: IBV_QPS_RTS,
            timeout: 14,
            retry_cnt: 7,
            rnr_retry: 7,
            max_rd_atomic: initiator_depth,
            ..Default::default()
        };
        let mask = IBV_QP_STATE
            | IBV_QP_TIMEOUT
            | IBV_QP_RETRY_CNT
            | IBV_QP_RNR_RETRY
            | IBV_QP_SQ_PSN
            | IBV_QP_MAX_QP_RD_ATOMIC;
        self.inner().modify(&mut raw, mask)
    }

    /// Back to the start, from any state. Work that was posted is forgotten without completions;
    /// windows that were bound stay bound.
    ///
    /// # Errors
    /// What the provider said.
    pub fn to_reset(&self) -> Result<(), VerbsError> {
        let mut raw = ibv_qp_attr {
            qp_state: IBV_QPS_RESET,
            ..Default::default()
        };
        self.inner().modify(&mut raw, IBV_QP_STATE)
    }

    /// Says anew what the peer may do (remote and flush rights) while the connection is up.
    ///
    /// # Errors
    /// What the provider said.
    pub fn set_peer_access(&self, access: Access) -> Result<(), VerbsError> {
        let mut raw = ibv_qp_attr {
            qp_access_flags: access.bits(),
            ..Default::default()
        };
        self.inner().modify(&mut raw, IBV_QP_ACCESS_FLAGS)
    }

    /// Whether both use one device.
    pub fn shares_device_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(
            self.protection_domain().context(),
            other.protection_domain().context(),
        )
    }
}
