/* What generate.sh hands to bindgen for src/sys/verbs.rs. */
#include <infiniband/verbs.h>
