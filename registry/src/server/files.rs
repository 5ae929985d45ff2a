//! How many files, which connections are too, the process may have open.

/// Files that are not connections: the store, plugins, event and audit logs,
/// administration.
const RESERVED: usize = 256;

/// Raises the process's limit as far as it may, and says how many connections
/// of `asked` it allows, at least 1.
#[cfg(unix)]
pub(super) fn connections(asked: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let wanted = (asked + RESERVED) as u64;
    let mut granted = limit.current;
    if granted.is_some_and(|soft| soft < wanted) {
        // None stands for no limit at all.
        let raised = limit.maximum.map_or(wanted, |hard| hard.min(wanted));
        let raised = Rlimit { current: Some(raised), maximum: limit.maximum };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => granted = raised.current,
            Err(e) => tracing::warn!("the limit of open files stays as it is: {e}"),
        }
    }
    let Some(granted) = granted.filter(|granted| *granted < wanted) else { return asked };
    let allowed = usize::try_from(granted).unwrap_or(usize::MAX).saturating_sub(RESERVED).max(1);
    tracing::info!(
        "max-connections is {allowed} instead of {asked}: the system allows {granted} open \
         files, of which {RESERVED} are not for connections; raise its limit (ulimit -n) for more"
    );
    allowed
}

/// As asked; the system has no such limit.
#[cfg(not(unix))]
pub(super) fn connections(asked: usize) -> usize {
    asked
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_files_bounds_connections() {
        assert_eq!(connections(1), 1);
        let most = connections(usize::MAX / 2);
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        if let Some(files) = limit.current {
            assert_eq!(most, usize::try_from(files).unwrap().saturating_sub(RESERVED).max(1));
        }
    }
}
