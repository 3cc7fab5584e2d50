/* What generate.sh hands to bindgen for src/sys/rdma_cm.rs. */
#include <rdma/rdma_cma.h>
