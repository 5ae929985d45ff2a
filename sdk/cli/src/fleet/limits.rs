//! How many sockets this process may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::failure::Failure;

/// Makes sure that so many files can be open, raising the soft limit if needed.
pub(super) fn allow_files(wanted: u64) -> Result<(), Failure> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // None is "unlimited".
    if current.is_none_or(|soft| soft >= wanted) {
        return Ok(());
    }
    if let Some(hard) = maximum.filter(|hard| *hard < wanted) {
        return Err(Failure::invalid(format!(
            "{wanted} open files are needed, and this process may have {hard}"
        ))
        .hint("fewer --watchers or --connections, or a higher hard limit: ulimit -Hn"));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).map_err(|e| {
        Failure::internal(format!("cannot raise the limit of open files to {wanted}"))
            .reason(e)
            .hint("raise it before: ulimit -n")
    })
}
