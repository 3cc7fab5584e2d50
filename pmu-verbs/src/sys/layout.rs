//! Sizes, offsets and values of the bindings, as C expressions: `gen/cross-check.sh` has a C
//! compiler check each of them against the headers.

#![cfg(test)]

use super::rdma_cm::*;
use super::verbs::*;

macro_rules! layouts {
    ($out:ident; $($kind:ident $name:ident { $($field:ident $(as $c:literal)?),* })*) => {$(
        let c_name = concat!(stringify!($kind), " ", stringify!($name));
        $out.push((format!("sizeof({c_name})"), size_of::<$name>() as u64));
        $out.push((format!("_Alignof({c_name})"), align_of::<$name>() as u64));
        $(
            #[allow(unused_mut, unused_assignments)]
            let mut field = stringify!($field);
            $(field = $c;)?
            let offset = core::mem::offset_of!($name, $field) as u64;
            $out.push((format!("offsetof({c_name}, {field})"), offset));
        )*
    )*};
}

macro_rules! values {
    ($out:ident; $($name:ident),*) => {$(
        $out.push((stringify!($name).to_owned(), u64::from($name)));
    )*};
}

fn verbs_structures(out: &mut Vec<(String, u64)>) {
    layouts! { out;
        union ibv_gid { raw }
        struct ibv_device { name, dev_name, dev_path, ibdev_path }
        struct ibv_device_attr {
            fw_ver, node_guid, max_mr_size, vendor_id, max_qp, max_qp_wr, device_cap_flags,
            max_sge, max_cqe, max_mr, max_qp_rd_atom, max_qp_init_rd_atom, max_mw, phys_port_cnt
        }
        struct ibv_device_attr_ex { orig_attr, comp_mask, odp_caps, device_cap_flags_ex,
            tso_caps, pci_atomic_caps, phys_port_cnt_ex }
        struct ibv_port_attr { state, active_mtu, gid_tbl_len, max_msg_sz, lid, link_layer,
            active_speed_ex }
        struct ibv_context { device, ops, cmd_fd, async_fd, mutex, abi_compat }
        struct ibv_context_ops { alloc_mw, bind_mw, dealloc_mw, poll_cq, req_notify_cq,
            post_send, post_recv }
        struct verbs_context { query_port, query_device_ex, create_qp_ex, sz, context }
        struct ibv_async_event { element, event_type }
        struct ibv_pd { context, handle }
        struct ibv_mr { context, pd, addr, length, handle, lkey, rkey }
        struct ibv_mw { context, pd, rkey, handle, type_ as "type" }
        struct ibv_mw_bind_info { mr, addr, length, mw_access_flags }
        struct ibv_comp_channel { context, fd, refcnt }
        struct ibv_cq { context, channel, cq_context, handle, cqe }
        struct ibv_wc { wr_id, status, opcode, vendor_err, byte_len,
            __bindgen_anon_1 as "imm_data", qp_num, src_qp, wc_flags, dlid_path_bits }
        struct ibv_qp { context, pd, send_cq, recv_cq, handle, qp_num, state, qp_type, mutex }
        struct ibv_qp_ex {
            qp_base, comp_mask, wr_id, wr_flags, wr_bind_mw, wr_local_inv, wr_rdma_read,
            wr_rdma_write, wr_send, wr_set_inline_data, wr_set_sge, wr_set_sge_list, wr_start,
            wr_complete, wr_abort, wr_atomic_write, wr_flush
        }
        struct ibv_qp_cap { max_send_wr, max_inline_data }
        struct ibv_qp_init_attr { send_cq, recv_cq, cap, qp_type, sq_sig_all }
        struct ibv_qp_init_attr_ex { send_cq, recv_cq, cap, qp_type, sq_sig_all, comp_mask, pd,
            rx_hash_conf, source_qpn, send_ops_flags }
        struct ibv_global_route { dgid, flow_label, sgid_index, hop_limit }
        struct ibv_ah_attr { grh, dlid, is_global, port_num }
        struct ibv_qp_attr { qp_state, path_mtu, rq_psn, dest_qp_num, qp_access_flags, cap,
            ah_attr, pkey_index, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num,
            timeout, retry_cnt, rnr_retry, rate_limit }
        struct ibv_sge { addr, length, lkey }
        struct ibv_send_wr { wr_id, next, sg_list, num_sge, opcode, send_flags,
            __bindgen_anon_1 as "invalidate_rkey", wr, __bindgen_anon_2 as "bind_mw" }
        struct ibv_recv_wr { wr_id, next, sg_list, num_sge }
    }
}

fn rdma_cm_structures(out: &mut Vec<(String, u64)>) {
    layouts! { out;
        struct rdma_event_channel { fd }
        struct rdma_addr {}
        struct rdma_route { addr, path_rec, num_paths }
        struct rdma_cm_id { verbs, channel, context, qp, route, ps, port_num, event, pd, qp_type }
        struct rdma_conn_param { private_data, private_data_len, responder_resources,
            initiator_depth, retry_count, rnr_retry_count, srq, qp_num }
        struct rdma_cm_event { id, listen_id, event, status, param }
    }
    // What `CmId::address` relies on: two unions, each as large as this.
    let storage = size_of::<libc::sockaddr_storage>() as u64;
    out.push(("sizeof(struct sockaddr_storage)".to_owned(), storage));
    out.push(("offsetof(struct rdma_addr, src_addr)".to_owned(), 0));
    out.push(("offsetof(struct rdma_addr, dst_addr)".to_owned(), storage));
}

fn constants(out: &mut Vec<(String, u64)>) {
    values! { out;
        IBV_ACCESS_LOCAL_WRITE, IBV_ACCESS_REMOTE_WRITE, IBV_ACCESS_REMOTE_READ,
        IBV_ACCESS_REMOTE_ATOMIC, IBV_ACCESS_MW_BIND, IBV_ACCESS_ON_DEMAND, IBV_ACCESS_HUGETLB,
        IBV_ACCESS_FLUSH_GLOBAL, IBV_ACCESS_FLUSH_PERSISTENT,
        IBV_DEVICE_MEM_WINDOW_TYPE_2A, IBV_DEVICE_MEM_WINDOW_TYPE_2B,
        IBV_QP_EX_WITH_RDMA_WRITE, IBV_QP_EX_WITH_RDMA_READ, IBV_QP_EX_WITH_SEND,
        IBV_QP_EX_WITH_BIND_MW, IBV_QP_EX_WITH_LOCAL_INV, IBV_QP_EX_WITH_FLUSH,
        IBV_QP_EX_WITH_ATOMIC_WRITE, IBV_QP_INIT_ATTR_PD, IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
        IBV_QPT_RC, IBV_MW_TYPE_2, IBV_FLUSH_GLOBAL, IBV_FLUSH_PERSISTENT, IBV_FLUSH_RANGE,
        IBV_FLUSH_MR, IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ, IBV_WR_SEND, IBV_WR_BIND_MW,
        IBV_WR_LOCAL_INV, IBV_SEND_FENCE, IBV_SEND_SIGNALED, IBV_SEND_SOLICITED, IBV_SEND_INLINE,
        IBV_WC_SUCCESS, IBV_WC_WR_FLUSH_ERR, IBV_WC_REM_ACCESS_ERR, IBV_WC_RETRY_EXC_ERR,
        IBV_WC_GENERAL_ERR, IBV_WC_FLUSH, IBV_WC_ATOMIC_WRITE, IBV_WC_RECV,
        IBV_WC_RECV_RDMA_WITH_IMM, IBV_QPS_RESET, IBV_QPS_ERR, IBV_QP_STATE, IBV_QP_ACCESS_FLAGS,
        IBV_QP_PORT, IBV_QP_AV, IBV_QP_DEST_QPN, IBV_QP_MAX_DEST_RD_ATOMIC,
        IBV_QP_MAX_QP_RD_ATOMIC, IBV_PORT_ACTIVE, IBV_MTU_256, IBV_MTU_4096,
        IBV_EVENT_CQ_ERR, IBV_EVENT_QP_FATAL, IBV_EVENT_DEVICE_FATAL, IBV_EVENT_GID_CHANGE,
        RDMA_PS_TCP, RDMA_CM_EVENT_ADDR_RESOLVED, RDMA_CM_EVENT_CONNECT_REQUEST,
        RDMA_CM_EVENT_ESTABLISHED, RDMA_CM_EVENT_TIMEWAIT_EXIT, RDMA_OPTION_ID,
        RDMA_OPTION_ID_ACK_TIMEOUT
    }
}

/// Says each of them in a form that the script picks out. The bindings assert their own sizes and
/// offsets when they are compiled; here it is only made sure that none is said twice.
#[test]
fn layouts_for_the_cross_check() {
    let mut lines = Vec::new();
    verbs_structures(&mut lines);
    rdma_cm_structures(&mut lines);
    constants(&mut lines);
    for (expression, value) in &lines {
        println!("layout: {expression} == {value}");
    }
    let count = lines.len();
    lines.sort();
    lines.dedup_by(|a, b| a.0 == b.0);
    assert_eq!(lines.len(), count);
    assert!(count > 200, "{count}");
}
