use crate::context::Context;
pub(crate) fn run(_context: &Context) {}
