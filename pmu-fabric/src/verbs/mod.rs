//! The provider for RDMA devices.
